"""The restart limit: a job is started again as long as its starts save new steps."""

import os
from collections.abc import Mapping
from pathlib import Path

from nld_train.config import RunConfig, require
from nld_train.run_folder.attempts import STARTS, STARTS_DEFAULT, current_job, read_attempts, starts_without_progress
from nld_train.run_folder.checkpoints import step_reached
from nld_train.run_folder.paths import LOGS


def read_restart_limit(environment: Mapping[str, str]) -> int:
    """How many starts in a row may save no new step. Raises: UserError for a variable that is no such number."""
    text = environment.get(STARTS, "") or str(STARTS_DEFAULT)
    require(text.isdigit() and int(text) > 0, f"{STARTS}={text!r}", "a whole number above 0", "correct the site file")
    return int(text)


def check_restart_limit(run: RunConfig) -> None:
    """Refuse a start of a job that has reached the restart limit, also where Slurm itself queued it again.

    Raises: UserError.
    """
    output, (job, _) = Path(run.output), current_job(os.environ)
    if job:
        step = step_reached(output)
        count = starts_without_progress(read_attempts(output), job, step)
        require(count < read_restart_limit(os.environ), *restart_limit_refusal(output, job, count, step))


def restart_limit_refusal(output: Path, job: str, count: int, step: int) -> tuple[str, str, str]:
    """The error (got, allowed, do) of a job at its restart limit. count: starts that saved no new step."""
    return (
        f"{count} starts of job {job} in a row saved no new step: {output} is still at step {step:,}",
        f"fewer than {count} ({STARTS} in the site file)",
        f"read {output / LOGS} and the job's log, correct what ended them, and launch it again",
    )
