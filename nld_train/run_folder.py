"""Where a run's output folder keeps its checkpoints: what training, conversion and imports agree on."""

from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder is a Hugging Face checkpoint; output folders have no config.json."""
    return (folder / "config.json").is_file()


def checkpoints(output: Path) -> Path:
    return output / "checkpoints"


def step_folder(output: Path, step: int) -> Path:
    """The checkpoint of one step."""
    return checkpoints(output) / f"iter_{step:07d}"
