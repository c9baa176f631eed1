"""Where a run's output folder keeps its checkpoints: what training, conversion and imports agree on."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from nld_train.config import ModelConfig, require

TRACKER = "latest_checkpointed_iteration.txt"


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder is a Hugging Face checkpoint; output folders have no config.json."""
    return (folder / "config.json").is_file()


def checkpoints(output: Path) -> Path:
    return output / "checkpoints"


def step_folder(output: Path, step: int) -> Path:
    """The checkpoint of one step."""
    return checkpoints(output) / f"iter_{step:07d}"


def model_record(model: ModelConfig) -> dict[str, object]:
    """A model's shape as model.json holds it."""
    record: dict[str, object] = json.loads(json.dumps(asdict(model)))
    return record


def check_same_model(init: str, recorded: Mapping[str, object], model: ModelConfig) -> None:
    """Refuse weights to start from that are of another shape. recorded: their `model_record`. Raises: UserError."""
    changed = [
        f"{name}={recorded.get(name)!r} there, {value!r} here"
        for name, value in model_record(model).items()
        if recorded.get(name) != value
    ]
    require(
        not changed,
        f"init={init!r} holds another model: {'; '.join(changed)}",
        "weights of the recipe's own model shape",
        "correct init= or the model section",
    )
