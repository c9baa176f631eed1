"""Where a run's output folder keeps its checkpoints: what training, conversion and imports agree on."""

from pathlib import Path

from nld_train.config import require

TRACKER = "latest_checkpointed_iteration.txt"


def checkpoints(output: Path) -> Path:
    return output / "checkpoints"


def step_folder(output: Path, step: int) -> Path:
    """The checkpoint of one step."""
    return checkpoints(output) / f"iter_{step:07d}"


def newest_step(output: Path) -> int | None:
    """Step of the newest checkpoint in an output folder, or None.

    Raises: UserError when the tracker names a checkpoint that is not there.
    """
    tracker = checkpoints(output) / TRACKER
    if not tracker.exists():
        return None
    named = tracker.read_text().strip()
    folder = checkpoints(output) / f"iter_{named:0>7}"
    require(
        named.isdigit() and folder.is_dir(),
        f"{tracker} names step {named!r}, but {folder} is not there",
        "a tracker file that names a checkpoint beside it",
        "write the number of an existing checkpoint into the tracker, or choose another output",
    )
    return int(named)
