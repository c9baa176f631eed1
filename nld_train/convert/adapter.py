"""A drafter's adapter as a stock PEFT folder, linear_spec_lora/, and back."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nld_train.config import DrafterConfig, ModelConfig, RunConfig, require
from nld_train.convert.folder_files import check_folder_links
from nld_train.convert.import_checkpoint import require_finite
from nld_train.convert.run_paths import locate_named_path
from nld_train.convert.safetensors_file import SafetensorsFile, write_safetensors
from nld_train.convert.source import CheckpointSource, open_checkpoint_source
from nld_train.convert.torch_dist import StoredWeights
from nld_train.convert.weight_table import TOWER, WeightMapping, adapter_mappings, check_stored_tensors
from nld_train.errors import UserError
from nld_train.json_file import read_json_object, write_json_object
from nld_train.peft_names import CONFIG, FOLDER, WEIGHTS
from nld_train.run_folder.checkpoints import check_checkpoint_contents, step_to_read
from nld_train.run_folder.frozen import read_frozen_model, read_frozen_run
from nld_train.run_folder.paths import step_folder

logger = logging.getLogger(__name__)
# What any such folder says; the rest are numbers.
# What else PEFT would compute with.
UNUSED = (
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform"),
    *("layer_replication", "lora_bias", "exclude_modules", "target_parameters", "trainable_token_indices"),
)
FIXED: dict[str, Any] = {
    "peft_type": "LORA",
    "target_modules": ["o_proj"],
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
}


@dataclass(frozen=True)
class AdapterSource:
    """One checkpoint of a drafter's run, checked."""

    output: Path
    step: int
    base: Path  # output folder of the model that it drafts for
    base_step: int | None  # None: its newest
    model: ModelConfig
    drafter: DrafterConfig
    weights: StoredWeights

    @property
    def units(self) -> list[WeightMapping]:
        return adapter_mappings(self.model, self.drafter.rank)


def open_adapter(output: Path, step: int | None = None, run: RunConfig | None = None) -> AdapterSource:
    """Open the newest adapter of a drafter's run, or that of a step. run: of this folder, where it was read before.

    Raises: UserError.
    """
    run = read_frozen_run(output) if run is None else run
    model = read_frozen_model(output)
    if run.drafter is None or run.init is None:
        raise UserError(
            f"{output} is no drafter's run", "the output folder of a recipe with a drafter", "correct the path"
        )
    chosen = step_to_read(output, step, "--step ")
    folder = step_folder(output, chosen)
    check_checkpoint_contents(folder)
    weights = StoredWeights(folder)
    expected = {unit.name: (model.layers, *unit.shape) for unit in adapter_mappings(model, run.drafter.rank)}
    check_stored_tensors(str(folder), weights.shapes, expected, "its run.json")
    base = locate_named_path(output, run, run.init)
    return AdapterSource(output, chosen, base, run.init_step, model, run.drafter, weights)


def open_adapter_base(adapter: AdapterSource) -> CheckpointSource:
    """The model that an adapter drafts for. Raises: UserError."""
    return open_checkpoint_source(adapter.base, adapter.base_step, option="init_step=")


def write_adapter(source: AdapterSource, target: Path, dtype: torch.dtype) -> None:
    """Write the adapter into the empty folder `target`."""
    drafter = source.drafter
    said = {"r": drafter.rank, "lora_alpha": _plain(drafter.alpha), "lora_dropout": drafter.dropout}
    write_json_object(target / CONFIG, FIXED | said | {"base_model_name_or_path": source.base.name})
    parts = [part for unit in source.units for part in unit.parts]
    numbers = (require_finite(source.weights.read(unit, dtype), unit.name, source.output) for unit in source.units)
    write_safetensors(target / WEIGHTS, parts, dtype, numbers)
    logger.info("%s: %d tensors, rank %d, from step %d", target.name, len(parts), source.drafter.rank, source.step)


def _plain(number: float) -> float:
    """512.0 as 512: readers of the published folder take a whole number."""
    return int(number) if number == int(number) else number


@dataclass(frozen=True)
class AdapterNumbers:
    """The numbers of an adapter_config.json."""

    rank: int
    alpha: float
    dropout: float


def read_adapter_numbers(folder: Path) -> AdapterNumbers:
    """Read adapter_config.json in this very folder. Raises: UserError where it is missing or of another kind."""
    path = folder / CONFIG
    content = read_json_object(path, "a PEFT folder of a drafter")
    for key, value in FIXED.items():
        require(content.get(key, value) == value, f"{path}: {key}={content.get(key)!r}", repr(value), "use one of ours")
    for key in UNUSED:
        require(
            not content.get(key), f"{path}: {key}={content.get(key)!r}", "a plain LoRA without it", "use one of ours"
        )
    # The model tells a drafter, which is on while drafting alone, from a fine-tuned model by this key.
    task = content.get("task_type")
    require(task is None, f"{path}: task_type={task!r}", "null, for a drafter", "write null, if this is a drafter's")
    rank, alpha = content.get("r"), content.get("lora_alpha")
    dropout = content.get("lora_dropout", 0.0)  # PEFT's own default
    for key, number in (("r", rank), ("lora_alpha", alpha), ("lora_dropout", dropout)):
        known = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        require(known, f"{path}: {key}={number!r}", "a number", "copy it again")
    require(isinstance(rank, int) and rank > 0, f"{path}: r={rank!r}", "a whole number above 0", "copy it again")
    require(0 <= dropout < 1, f"{path}: lora_dropout={dropout!r}", "0 or more, below 1", "copy it again")
    assert isinstance(rank, int) and isinstance(alpha, int | float), "they were checked"
    return AdapterNumbers(rank, alpha, dropout)


class StoredAdapter:
    """A PEFT folder of this format, opened and checked against the model it is for.

    Raises: UserError for a folder that is missing, damaged, of another kind or of another model.
    """

    def __init__(self, folder: Path, model: ModelConfig) -> None:
        self.folder = find_adapter(folder)
        check_folder_links(self.folder)
        numbers = read_adapter_numbers(self.folder)
        self.rank, self.scale = numbers.rank, numbers.alpha / numbers.rank
        self.file = SafetensorsFile(self.folder / WEIGHTS)
        self.units = adapter_mappings(model, self.rank)
        expected = {part.name: part.shape for unit in self.units for part in unit.parts}
        stored = {name: entry.shape for name, entry in self.file.entries.items()}
        check_stored_tensors(str(self.folder), stored, expected, "its adapter_config.json and this model")

    def read(self, unit: WeightMapping) -> Tensor:
        """The stored tensor of a mapping: A [r, H * D] or B [E, r]. Raises: UserError for NaN and infinite numbers."""
        (part,) = unit.parts
        return require_finite(self.file.read(part.name), part.name, self.folder)

    def check_numbers(self) -> None:
        """Read every tensor. Raises: UserError for NaN and infinite numbers."""
        for unit in self.units:
            self.read(unit)

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """A [r, H * D] and B [E, r] of one layer."""
        a, b = (self.read(unit) for unit in self.units if unit.layer == layer)
        return a, b


def find_adapter(folder: Path) -> Path:
    """The adapter's folder: this one, or the one of the fixed name in it."""
    inner = folder / FOLDER
    return inner if (inner / CONFIG).is_file() else folder


def differing_tensors(source: AdapterSource, stored: StoredAdapter) -> Iterator[str]:
    """Names of the folder's tensors that are not the checkpoint's."""
    for unit in source.units:
        found = stored.read(unit)
        if not torch.equal(found, source.weights.read(unit, found.dtype)):
            yield unit.parts[0].name


def attach_adapter(model: Any, folder: Path) -> Any:
    """Put a folder's adapter on a Hugging Face model, in place, with PEFT's own loader; on from then on.

    Returns: PEFT's own model around it. Raises: UserError without PEFT.
    """
    try:
        from peft import LoraConfig, PeftModel
    except ImportError as error:
        raise UserError("an adapter without the package peft", "peft installed", "pip install peft") from error
    inner = find_adapter(folder)
    numbers = read_adapter_numbers(inner)
    # A vision tower's attention has maps of the same name, which no adapter is for.
    sees = any(TOWER in name for name, _ in model.named_modules())
    # Ours, from what was checked: PEFT would take any value of the file.
    config = LoraConfig(
        r=numbers.rank,
        lora_alpha=numbers.alpha,  # type: ignore[arg-type]
        lora_dropout=numbers.dropout,
        target_modules=["o_proj"],
        exclude_modules=f".*{TOWER}.*" if sees else None,
        inference_mode=True,
    )
    return PeftModel.from_pretrained(model, inner, config=config)
