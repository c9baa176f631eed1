"""When a chain of starts stops: it goes on as long as new steps are saved."""

import os
from collections.abc import Mapping
from pathlib import Path

from nld_train.config import RunConfig, require
from nld_train.run_folder.attempts import STARTS, STARTS_DEFAULT, current_job, read_attempts, starts_without_progress
from nld_train.run_folder.checkpoints import step_reached


def read_restart_limit(environment: Mapping[str, str]) -> int:
    """Starts in a row without a new saved step after which a chain stops."""
    text = environment.get(STARTS, "") or str(STARTS_DEFAULT)
    require(text.isdigit() and int(text) > 0, f"{STARTS}={text!r}", "a whole number above 0", "correct the site file")
    return int(text)


def check_restart_limit(run: RunConfig) -> None:
    """Refuse a start of a job whose last starts saved nothing new, also where Slurm itself queued it again."""
    output, (job, _) = Path(run.output), current_job(os.environ)
    if job:
        step = step_reached(output)
        count = starts_without_progress(read_attempts(output), job, step)
        require(count < read_restart_limit(os.environ), *restart_limit_refusal(output, job, count, step))


def restart_limit_refusal(output: Path, job: str, count: int, step: int) -> tuple[str, str, str]:
    """(got, allowed, do) of a chain that stops."""
    return (
        f"{count} starts of job {job} in a row saved no new step: {output} is still at step {step:,}",
        f"fewer than {count} ({STARTS} in the site file)",
        f"read {output / 'logs'} and the job's log, mend what ended them, and launch it again",
    )
