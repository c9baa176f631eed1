"""Where a run goes on after it stopped, however it stopped: the newest whole checkpoint, and the curve up to it."""

import logging
import os
import shutil
from pathlib import Path

from nld_train.config import require
from nld_train.files import write_text
from nld_train.run_folder.checkpoints import MANIFEST, checkpoint_problem, checkpoint_steps
from nld_train.run_folder.paths import TRACKER, checkpoints_folder, step_folder

logger = logging.getLogger(__name__)
# Megatron-Bridge reads the step from this copy of the newest checkpoint's own file.
TRAIN_STATE, NEWEST_TRAIN_STATE = "train_state.pt", "latest_train_state.pt"


def resume_step(output: Path) -> int | None:
    """Step of the newest whole checkpoint, read to its last byte; None for a fresh start.

    Newer ones are named and set aside, and what Megatron reads first then points at the one that is used. A save that
    was cut off is no loss: where none was ever finished, the run starts afresh.

    Raises: UserError where a finished checkpoint is damaged and no other is left; nothing is renamed then.
    """
    wrong: dict[int, str] = {}
    whole = None
    for step in reversed(checkpoint_steps(output)):
        found = checkpoint_problem(step_folder(output, step), contents=True)
        if found is None:
            whole = step
            break
        wrong[step] = found
    lost = [found for step, found in wrong.items() if (step_folder(output, step) / MANIFEST).exists()]
    require(
        whole is not None or not lost,
        f"no whole checkpoint left in {checkpoints_folder(output)}: {'; '.join(lost)}",
        "one checkpoint as it was saved",
        "copy one back, or start again with another output=",
    )
    for step, found in wrong.items():
        logger.warning("%s; set aside as %s", found, _set_checkpoint_aside(step_folder(output, step)).name)
    _point_tracker_at(output, whole)
    return whole


def _set_checkpoint_aside(folder: Path) -> Path:
    """Rename a checkpoint out of the way; returns its new path. The name must not begin as a checkpoint's does:
    Megatron reads a number from every name that does."""
    name, count = folder.with_name(f"damaged_{folder.name}"), 1
    while name.exists():
        count += 1
        name = folder.with_name(f"damaged_{folder.name}.{count}")
    return folder.rename(name)


def _point_tracker_at(output: Path, step: int | None) -> None:
    """Point the files that Megatron reads first at the checkpoint of `step`; None: take them away."""
    tracker, newest = checkpoints_folder(output) / TRACKER, checkpoints_folder(output) / NEWEST_TRAIN_STATE
    if step is None:
        tracker.unlink(missing_ok=True)
        newest.unlink(missing_ok=True)
        return
    partial = newest.with_name(f".{newest.name}.partial")
    shutil.copyfile(step_folder(output, step) / TRAIN_STATE, partial)
    os.replace(partial, newest)
    write_text(tracker, str(step))
