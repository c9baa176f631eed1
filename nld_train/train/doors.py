"""What `nld train` refuses before it starts, by name: `nld doctor` and `nld launch` ask, and write nothing."""

from collections.abc import Callable
from pathlib import Path

from nld_train.checkpoint_files import complete_steps, saved_steps
from nld_train.config import RunConfig
from nld_train.run_folder import is_hugging_face
from nld_train.train.folder import check_init, check_same_run
from nld_train.train.launch import check_data, check_ranks


def check_start(run: RunConfig) -> None:
    """Refuse an output folder of another run, and weights to start from that are missing or of another shape.

    A Hugging Face folder is imported at the start; nothing is known here of what that gives. Raises: UserError.
    """
    output = Path(run.output)
    if run.init is not None and is_hugging_face(Path(run.init)):
        return
    if saved_steps(output):
        check_same_run(run, output)
    if run.init is not None and (run.drafter is not None or not complete_steps(output)):
        check_init(run)


DOORS: dict[str, Callable[[RunConfig], None]] = {"ranks": check_ranks, "start": check_start, "data": check_data}
