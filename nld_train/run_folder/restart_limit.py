"""When a chain of starts stops: it goes on as long as new steps are saved."""

import os
from collections.abc import Mapping
from pathlib import Path

from nld_train.config import RunConfig, require
from nld_train.run_folder.attempts import STARTS, STARTS_DEFAULT, attempts, this_job, without_progress
from nld_train.run_folder.checkpoints import saved_step


def allowed_starts(environment: Mapping[str, str]) -> int:
    """Starts in a row without a new saved step after which a chain stops."""
    text = environment.get(STARTS, "") or str(STARTS_DEFAULT)
    require(text.isdigit() and int(text) > 0, f"{STARTS}={text!r}", "a whole number above 0", "correct the site file")
    return int(text)


def check_progress(run: RunConfig) -> None:
    """Refuse a start of a job whose last starts saved nothing new, also where Slurm itself queued it again."""
    output, (job, _) = Path(run.output), this_job(os.environ)
    if job:
        step = saved_step(output)
        count = without_progress(attempts(output), job, step)
        require(count < allowed_starts(os.environ), *fruitless(output, job, count, step))


def fruitless(output: Path, job: str, count: int, step: int) -> tuple[str, str, str]:
    """(got, allowed, do) of a chain that stops."""
    return (
        f"{count} starts of job {job} in a row saved no new step: {output} is still at step {step:,}",
        f"fewer than {count} ({STARTS} in the site file)",
        f"read {output / 'logs'} and the job's log, mend what ended them, and launch it again",
    )
