"""Where a run goes on, however it stopped: at its newest whole checkpoint."""

import logging
import os
import shutil
from pathlib import Path

from nld_train.config import require
from nld_train.files import write_text
from nld_train.run_folder.checkpoint_pickles import check_checkpoint_pickles
from nld_train.run_folder.checkpoints import MANIFEST, checkpoint_problem, checkpoint_steps
from nld_train.run_folder.paths import NEWEST_TRAIN_STATE, TRACKER, TRAIN_STATE, checkpoints_folder, step_folder

logger = logging.getLogger(__name__)
DAMAGED_PREFIX = "damaged_"  # of checkpoints that are set aside


def resume_step(output: Path) -> int | None:
    """The step of the newest whole checkpoint, which is read to its last byte; None for a fresh start.

    Newer checkpoints are named and set aside, and the files that Megatron reads first then point at the one that is
    used. A save that was cut off is no loss: where no save was ever finished, the run starts afresh.

    Raises: UserError where a finished checkpoint is damaged and no whole one is left, or where the one to go on from
    would run code when it is read; nothing is renamed then.
    """
    # 1. From the newest to the oldest: the first whole checkpoint is used.
    wrong: dict[int, str] = {}
    whole = None
    for step in reversed(checkpoint_steps(output)):
        found = checkpoint_problem(step_folder(output, step), contents=True)
        if found is None:
            whole = step
            break
        wrong[step] = found
    # 2. Without a whole one, a finished save that is damaged now would be lost by a fresh start.
    lost = [found for step, found in wrong.items() if (step_folder(output, step) / MANIFEST).exists()]
    require(
        whole is not None or not lost,
        f"no whole checkpoint left in {checkpoints_folder(output)}: {'; '.join(lost)}",
        "one checkpoint as it was saved",
        "copy one back, or start again with another output=",
    )
    # 3. Megatron would run what the pickles of a checkpoint name.
    if whole is not None:
        check_checkpoint_pickles(step_folder(output, whole))
    # 4. Only now is anything renamed.
    for step, found in wrong.items():
        logger.warning("%s; set aside as %s", found, _set_checkpoint_aside(step_folder(output, step)).name)
    _point_tracker_at(output, whole)
    return whole


def _set_checkpoint_aside(folder: Path) -> Path:
    """Rename a checkpoint out of the way; returns its new path.

    The new name must not begin as the names of checkpoints do: Megatron reads a number from every such name.
    """
    name, count = folder.with_name(f"{DAMAGED_PREFIX}{folder.name}"), 1
    while name.exists():
        count += 1
        name = folder.with_name(f"{DAMAGED_PREFIX}{folder.name}.{count}")
    return folder.rename(name)


def _point_tracker_at(output: Path, step: int | None) -> None:
    """Point the files that Megatron reads first at the checkpoint of `step`; None: remove these files."""
    tracker, newest = checkpoints_folder(output) / TRACKER, checkpoints_folder(output) / NEWEST_TRAIN_STATE
    if step is None:
        tracker.unlink(missing_ok=True)
        newest.unlink(missing_ok=True)
        return
    partial = newest.with_name(f".{newest.name}.partial")
    shutil.copyfile(step_folder(output, step) / TRAIN_STATE, partial)
    os.replace(partial, newest)
    write_text(tracker, str(step))
