"""What a start does with the output folder: it finds the step to go on from, and readies the folder for the ranks."""

import logging
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.data.identity import check_data_identity
from nld_train.doctor.start_checks import check_init, check_same_run
from nld_train.objectives.choose import objective_of
from nld_train.run_folder.checkpoints import checkpoint_steps, complete_steps
from nld_train.run_folder.early_end import forget_early_end
from nld_train.run_folder.frozen import freeze_run, setting_differences
from nld_train.run_folder.metrics import truncate_metrics
from nld_train.run_folder.paths import METRICS
from nld_train.run_folder.refusal import forget_refusal
from nld_train.run_folder.stop_file import stop_file
from nld_train.start.resume import resume_step

logger = logging.getLogger(__name__)


def open_output(run: RunConfig) -> int | None:
    """Prepare the output folder and return the step to resume at, or None for a fresh start.

    Raises: UserError when the folder holds another run's checkpoint, or one of other data, when none of its own is
    whole, or when the weights to start from are not there.
    """
    output = Path(run.output)
    if checkpoint_steps(output):
        changed = setting_differences(check_same_run(run, output), run, run.name)
        if changed:
            logger.info("changed since the last start, and taken over: %s", "; ".join(changed))
    if complete_steps(output):
        check_data_identity(run)
    step = resume_step(output)
    if objective_of(run).init_to_read(resumes=step is not None) is not None:
        check_init(run)
    output.mkdir(parents=True, exist_ok=True)
    stop_file(run.output).unlink(missing_ok=True)
    forget_refusal(output)
    truncate_metrics(output / METRICS, step)
    forget_early_end(output, step)
    freeze_run(run)
    return step
