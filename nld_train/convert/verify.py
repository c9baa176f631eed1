"""Proof that a Hugging Face folder holds a Megatron checkpoint: bits both ways, shapes, frequencies, and logits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nld_train.config import ModelConfig
from nld_train.convert.config_json import FolderConfig, read_config_token_ids
from nld_train.convert.export import bytes_text
from nld_train.convert.exported_code import ExportedModel, fitting_layers
from nld_train.convert.hf_folder import HFWeights, open_hf_folder
from nld_train.convert.phases import timed_phase
from nld_train.convert.reference_network import (
    FREQUENCY_TOLERANCE,
    PROBE_BLOCKS,
    ProbeRow,
    ReferenceNetwork,
    make_probe_row,
    probed_token_ids,
    reference_frequencies,
)
from nld_train.convert.safetensors_file import tensor_bytes
from nld_train.convert.source import CheckpointSource
from nld_train.convert.stock import StockModel
from nld_train.convert.vision_json import vision_entries
from nld_train.convert.weight_table import (
    MINISTRAL_TEXT,
    NLD,
    NLD_VLM,
    HFNaming,
    WeightMapping,
    join_tensors,
    split_tensor,
    tensor_count,
    weight_mappings,
)
from nld_train.errors import UserError
from nld_train.vision_config import VisionConfig

TOLERANCE = 1e-4  # of logits in float32, relative to the largest one where that is above 1


@dataclass(frozen=True)
class VerifyFinding:
    """One thing that was checked, and what was seen."""

    what: str
    seen: str

    def __str__(self) -> str:
        return f"{self.what:<22} {self.seen}"


def compare_with_checkpoint(source: CheckpointSource, folder: Path, layers: int | None = None) -> list[VerifyFinding]:
    """Compare a folder with the checkpoint it was made from; `layers`: how many are run for logits, None: what fits.

    Raises: UserError that names the first difference.
    """
    described, weights = open_hf_folder(folder)
    source = as_folder_reads(source, described)
    check_description(source, described, folder)
    with timed_phase("comparing every bit, in both directions"):
        findings = [count_tensors(source, weights), *bits_both_ways(source, weights, described.naming)]
    with timed_phase("comparing logits"):
        findings += verify_logits(source, folder, described, weights, layers)
    return findings


def verify_logits(
    source: CheckpointSource, folder: Path, described: FolderConfig, weights: HFWeights, layers: int | None
) -> list[VerifyFinding]:
    """Rotary frequencies, and the logits of every mode that the folder has, against the training-time forward."""
    traits = read_config_token_ids(described.content, source.model.vocab_size)
    fitting = fitting_layers(source.model, source.vision)
    run = fitting if layers is None else min(fitting, layers)
    ids = probed_token_ids(source.model.vocab_size, traits.mask_token_id)
    ours = described.naming in (NLD, NLD_VLM)
    tri_mode = ExportedModel(folder, described, weights, run, ids) if ours else None
    model = StockModel(described, weights, run, ids) if tri_mode is None else tri_mode
    findings = [compare_rotary(source, model)]
    network = ReferenceNetwork(source.model, source.weights, weights.dtype(described.naming.head), run)
    for start in logit_row_starts(source, PROBE_BLOCKS * traits.block_size):
        row = make_probe_row(source.model, traits.mask_token_id, traits.block_size, start)
        noisy, clean = network.logits(row, ids, model.inverse_frequencies()).chunk(2)
        where = place_text(row, run, source.model, len(ids))
        off = logit_distance("AR", model.ar_logits(row), clean)
        findings.append(VerifyFinding("logits, AR", f"off by {off:.0e}, {where}"))
        if tri_mode is not None:
            off = logit_distance("diffusion", tri_mode.block_logits(row), noisy)
            findings.append(VerifyFinding("logits, diffusion", f"off by {off:.0e}, {where}"))
    return findings


def as_folder_reads(source: CheckpointSource, described: FolderConfig) -> CheckpointSource:
    """The checkpoint without its vision tower where the folder's format has no place for one, and as it is else."""
    return replace(source, vision=None) if described.naming.vision is None else source


def check_description(source: CheckpointSource, described: FolderConfig, folder: Path) -> None:
    """Raises: UserError unless config.json is of a format that we export and of the checkpoint's shape."""
    same = described.model == source.model and vision_entries_of(described.vision) == vision_entries_of(source.vision)
    if described.naming not in (NLD, NLD_VLM, MINISTRAL_TEXT) or not same:
        raise UserError(
            f"{folder}/config.json describes another model than {source.output}/model.json",
            "an export of that checkpoint",
            "give the folder and the output that belong together, or export again",
        )


def vision_entries_of(vision: VisionConfig | None) -> dict[str, Any]:
    """What a folder says of a vision tower; how it was trained is no part of it."""
    return {} if vision is None else vision_entries(vision)


def count_tensors(source: CheckpointSource, weights: HFWeights) -> VerifyFinding:
    """Tensors and bytes of the folder."""
    total = sum(tensor_bytes(weights.dtype(name), shape) for name, shape in weights.shapes.items())
    found, expected = len(weights.shapes), tensor_count(source.model, source.vision)
    assert found == expected, f"{found} tensors, {expected} expected"
    text = f"{found} = 9 x {source.model.layers} + 3"
    text += "" if source.vision is None else f" + 9 x {source.vision.layers} + 6 of vision"
    return VerifyFinding("tensors", f"{text}, {total:,} bytes ({bytes_text(total)})")


def compare_folder_bits(source: CheckpointSource, folder: Path) -> VerifyFinding:
    """Whether a folder holds a checkpoint's weights, bit for bit. Raises: UserError."""
    described, weights = open_hf_folder(folder)
    source = as_folder_reads(source, described)
    check_description(source, described, folder)
    return bits_both_ways(source, weights, described.naming)[0]


def verify_import(source: CheckpointSource, folder: Path) -> list[VerifyFinding]:
    """Compare an import with the folder that it was made from. Raises: UserError."""
    described, weights = open_hf_folder(folder, text_only=source.vision is None)
    with timed_phase("comparing every bit"):
        return bits_both_ways(source, weights, described.naming)[1:]


def bits_both_ways(source: CheckpointSource, weights: HFWeights, naming: HFNaming) -> list[VerifyFinding]:
    """Megatron's tensors, converted, against the folder's, and the folder's, converted, against Megatron's.

    Each tensor is read once for both. Raises: UserError that names the first tensor that differs.
    """
    for unit in weight_mappings(source.model, naming, source.vision):
        for first, last in comparison_ranges(source, unit):
            stored = [weights.read(part.name, first, last) for part in unit.parts]
            ours = source.weights.read(unit, stored[0].dtype, first, last)
            for part, made, theirs in zip(unit.parts, split_tensor(unit, ours), stored, strict=True):
                check_same_bits(part.name, made, theirs)
            check_same_bits(unit.name, join_tensors(unit, stored), ours)
    seen = f"every bit equal{rounding_remark(source, weights, naming)}"
    return [VerifyFinding("Megatron -> HF", seen), VerifyFinding("HF -> Megatron", seen)]


def comparison_ranges(source: CheckpointSource, unit: WeightMapping) -> Sequence[tuple[int, int | None]]:
    """Row ranges to compare a unit by: as stored where rows stay rows, else all at once."""
    return source.weights.row_ranges(unit) if len(unit.parts) == 1 else [(0, None)]


def rounding_remark(source: CheckpointSource, weights: HFWeights, naming: HFNaming) -> str:
    """A remark where the folder holds fewer bits than the checkpoint."""
    dtype = weights.dtype(naming.head)
    return "" if source.weights.dtypes == {dtype} else f" after rounding to {str(dtype).removeprefix('torch.')}"


def check_same_bits(name: str, made: Tensor, stored: Tensor) -> None:
    """Refuse two tensors of any shape that are not the same bit for bit. Raises: UserError."""
    if made.dtype != stored.dtype or not torch.equal(made.contiguous().view(torch.uint8), stored.view(torch.uint8)):
        raise difference_error(f"{name} differs from the checkpoint's numbers")


def difference_error(what: str) -> UserError:
    return UserError(what, "a folder that holds this very checkpoint", "export it again, with the right --step")


def compare_rotary(source: CheckpointSource, runnable: ExportedModel | StockModel) -> VerifyFinding:
    """The model's own rotary frequencies against the formula."""
    found = runnable.inverse_frequencies().double()
    expected = reference_frequencies(source.model.rope, source.model.head_dim)
    worst = ((found - expected) / expected).abs().max().item()
    if not worst <= FREQUENCY_TOLERANCE:
        raise difference_error(f"inv_freq differs by {worst:.1e} of its value from YaRN with the checkpoint's numbers")
    return VerifyFinding("inv_freq", f"{len(found)} frequencies, off by {worst:.0e} at most")


def logit_row_starts(source: CheckpointSource, row_length: int) -> list[int]:
    """Positions at which a row of logits begins: the first, and one that crosses the original context."""
    rope = source.model.rope
    crossing = max(0, min(rope.original_max_position, rope.max_position - row_length // 2) - row_length // 2)
    return sorted({0, crossing})


def place_text(row: ProbeRow, layers: int, model: ModelConfig, ids: int) -> str:
    """Where a row of logits stands, and how much of the model was run for it."""
    some = [] if layers == model.layers else [f"first {layers} of {model.layers} layers"]
    some += [] if ids == model.vocab_size else [f"{ids:,} of {model.vocab_size:,} ids"]
    return f"positions {row.start:,}..{row.start + len(row.clean) - 1:,}{f' ({", ".join(some)})' if some else ''}"


def logit_distance(mode: str, found: Tensor, expected: Tensor) -> float:
    """Largest difference of logits [B, S, V], relative to the largest one where that is above 1. Raises: UserError."""
    worst = (found.double() - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    if not worst <= TOLERANCE:
        raise difference_error(f"logits in {mode} mode are off by {worst:.1e}")
    return worst
