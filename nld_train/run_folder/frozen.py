"""The frozen configuration of a run and the shape of its model: written at a start, read back and compared."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from nld_train.config import ModelConfig, RunConfig, require
from nld_train.fields import from_tree
from nld_train.files import write_text
from nld_train.json_file import read_json_object
from nld_train.recipe import run_to_json
from nld_train.run_folder.paths import MODEL, RUN, TRAINED_OR_IMPORTED
from nld_train.vision_config import VisionConfig

logger = logging.getLogger(__name__)
VISION = "vision"  # the entry of model.json beside the language model's shape
# Settings that came after the first run.json was written -> what versions without them did.
CAME_LATER: Mapping[str, object] = {
    "init_step": None,
    "init_optimizer": False,
    "data.skip_rows": 0,
    "data.verify": "never",
    "train.eval_decode": 0,
    "sampler": None,
    "train.fp8": "none",
    "train.memory_trial": "never",
    "diffusion.ar_weight": 1.0,
    "diffusion.level_rows": 1,
    "drafter.loss": "lk_hybrid",
    "drafter.place_decay": 1.0,
    "drafter.first_error_weight": 1.0,
    "train.deterministic": False,
    "data.text_length": None,
    "vision": None,
}


def read_frozen_run(output: Path) -> RunConfig:
    """The configuration that a run was started with. Raises: UserError where its folder holds none."""
    path = output / RUN
    require(path.is_file(), f"no {RUN} in {output}", TRAINED_OR_IMPORTED, "correct the path")
    tree = read_json_object(path, TRAINED_OR_IMPORTED)
    filled = _fill_later_settings(tree)
    if filled:
        logger.info("%s is of an older version, which did: %s", path, ", ".join(filled))
    return from_tree(RunConfig, tree)


def _fill_later_settings(tree: dict[str, Any]) -> list[str]:
    """Add to the settings of an older version those that came later; returns them as "key=value"."""
    filled = []
    for key, value in CAME_LATER.items():
        *sections, name = key.split(".")
        place: Any = tree
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if isinstance(place, dict) and name not in place:
            place[name] = value
            filled.append(f"{key}={value}")
    return filled


def read_run_if_any(output: Path) -> RunConfig | None:
    """The frozen configuration of a run; None where the folder has none, as that of an import. Raises: UserError."""
    return read_frozen_run(output) if (output / RUN).is_file() else None


def holds_no_model(output: Path) -> str | None:
    """What the run that wrote this folder trained in place of a model: "drafter" or "sampler"; None: a model. Other
    settings are not read: an older version may have frozen them."""
    path = output / RUN
    tree = read_json_object(path, TRAINED_OR_IMPORTED) if path.is_file() else {}
    return next((name for name in ("drafter", "sampler") if tree.get(name) is not None), None)


def read_frozen_model(output: Path) -> ModelConfig:
    """The shape of the language model whose checkpoints a run or an import wrote. Raises: UserError."""
    tree = read_json_object(output / MODEL, TRAINED_OR_IMPORTED)
    return from_tree(ModelConfig, {name: value for name, value in tree.items() if name != VISION}, "model.")


def read_frozen_vision(output: Path) -> VisionConfig | None:
    """The vision tower in front of the language model; None where there is none. Raises: UserError."""
    tree = read_json_object(output / MODEL, TRAINED_OR_IMPORTED)
    return from_tree(VisionConfig, tree[VISION], f"{VISION}.") if VISION in tree else None


def freeze_run(run: RunConfig) -> None:
    """Write run.json and model.json into the output folder of a run that starts."""
    output = Path(run.output)
    record = model_record(run.model) | vision_record(run.vision)
    write_text(output / MODEL, json.dumps(record, indent=2) + "\n")
    write_text(output / RUN, run_to_json(run))


def model_record(model: ModelConfig) -> dict[str, object]:
    """A language model's shape as model.json holds it."""
    record: dict[str, object] = json.loads(json.dumps(asdict(model)))
    return record


def vision_record(vision: VisionConfig | None) -> dict[str, object]:
    """What model.json holds beside the `model_record` of a model with a vision tower."""
    return {} if vision is None else {VISION: asdict(vision)}


def check_same_model(init: str, recorded: Mapping[str, object], model: ModelConfig) -> None:
    """Refuse to start from weights of another shape. recorded: the `model_record` of the weights. Raises: UserError."""
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


def check_same_vision(init: str, recorded: Mapping[str, object], vision: VisionConfig | None) -> None:
    """Refuse to start from weights with another vision tower, or with one where the run has none, or the other way
    round. recorded: what model.json of the weights holds. Raises: UserError."""
    there, here = recorded.get(VISION), vision_record(vision).get(VISION)
    require(
        here is None or there is not None,
        f"init={init!r} has no vision tower",
        "weights of a vision-language model",
        "`nld convert merge-vision` puts a tower in front of a text model",
    )
    require(
        here is not None or there is None,
        f"init={init!r} has a vision tower, and the run no section vision",
        "weights of a text model",
        "start from what `nld convert export --text-only` writes of it, or add the section",
    )
    if not isinstance(here, dict) or not isinstance(there, dict):
        return
    names = [name for name in here if name not in ("train_tower", "recompute") and here[name] != there.get(name)]
    require(
        not names,
        f"init={init!r} holds another vision model: "
        + "; ".join(f"{name}={there.get(name)!r} there, {here[name]!r} here" for name in names),
        "weights of the recipe's own tower and token ids",
        "correct init= or the vision section",
    )


def setting_differences(before: object, now: object, name: str) -> list[str]:
    """One text for each setting of a section that differs. name: dotted key of the section."""
    if before == now:
        return []
    if not hasattr(before, "__dataclass_fields__"):
        return [f"{name} was {before!r}, is {now!r}"]
    found = []
    for entry in fields(before):  # type: ignore[arg-type]
        found += setting_differences(getattr(before, entry.name), getattr(now, entry.name), f"{name}.{entry.name}")
    return found
