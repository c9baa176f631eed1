"""Proof that a Hugging Face folder holds a Megatron checkpoint: bits both ways, shapes, frequencies, and logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nld_train.convert.config_json import FolderConfig, read_config_token_ids
from nld_train.convert.export import bytes_text
from nld_train.convert.exported_code import ExportedModel, fitting_layers
from nld_train.convert.hf_folder import HFWeights, open_hf_folder
from nld_train.convert.reference_network import (
    PROBE_BLOCKS,
    ProbeRow,
    ReferenceNetwork,
    make_probe_row,
    reference_frequencies,
)
from nld_train.convert.safetensors_file import tensor_bytes
from nld_train.convert.source import CheckpointSource
from nld_train.convert.weight_table import (
    NLD,
    HFNaming,
    WeightMapping,
    join_tensors,
    split_tensor,
    tensor_count,
    weight_mappings,
)
from nld_train.errors import UserError

TOLERANCE = 1e-4  # of logits in float32, relative to the largest one where that is above 1
FREQUENCY_TOLERANCE = 1e-6  # relative: the model computes in float32


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
    check_description(source, described, folder)
    traits = read_config_token_ids(described.content, source.model.vocab_size)
    findings = [
        count_tensors(source, weights),
        compare_from_megatron(source, weights),
        bits_from_hugging_face(source, weights, NLD),
    ]
    fitting = fitting_layers(source.model) if layers is None else layers
    runnable = ExportedModel(folder, described, weights, fitting)
    findings.append(compare_rotary(source, runnable))
    network = ReferenceNetwork(source.model, source.weights, weights.dtype(NLD.head), fitting)
    for start in logit_row_starts(source, PROBE_BLOCKS * traits.block_size):
        row = make_probe_row(source.model, traits.mask_token_id, traits.block_size, start)
        findings += compare_logits(network, runnable, row, source.model.layers)
    return findings


def check_description(source: CheckpointSource, described: FolderConfig, folder: Path) -> None:
    """Raises: UserError unless config.json is of the NLD format and of the checkpoint's shape."""
    if described.naming is not NLD or described.model != source.model:
        raise UserError(
            f"{folder}/config.json describes another model than {source.output}/model.json",
            "an export of that checkpoint",
            "give the folder and the output that belong together, or export again",
        )


def count_tensors(source: CheckpointSource, weights: HFWeights) -> VerifyFinding:
    """Tensors and bytes of the folder."""
    total = sum(tensor_bytes(weights.dtype(name), shape) for name, shape in weights.shapes.items())
    found, expected = len(weights.shapes), tensor_count(source.model)
    assert found == expected, f"{found} tensors, {expected} expected"
    return VerifyFinding("tensors", f"{found} = 9 x {source.model.layers} + 3, {total:,} bytes ({bytes_text(total)})")


def compare_folder_bits(source: CheckpointSource, folder: Path) -> VerifyFinding:
    """Whether a folder holds a checkpoint's weights, bit for bit. Raises: UserError."""
    described, weights = open_hf_folder(folder)
    check_description(source, described, folder)
    return compare_from_megatron(source, weights)


def compare_from_megatron(source: CheckpointSource, weights: HFWeights) -> VerifyFinding:
    """Megatron's tensors, converted, against the folder's."""
    for unit in weight_mappings(source.model, NLD):
        for first, last in comparison_ranges(source, unit):
            made = split_tensor(unit, source.weights.read(unit, weights.dtype(unit.parts[0].name), first, last))
            for part, tensor in zip(unit.parts, made, strict=True):
                check_same_bits(part.name, tensor, weights.read(part.name, first, last))
    return VerifyFinding("Megatron -> HF", f"every bit equal{rounding_remark(source, weights, NLD)}")


def verify_import(source: CheckpointSource, folder: Path) -> list[VerifyFinding]:
    """Compare an import with the folder that it was made from. Raises: UserError."""
    described, weights = open_hf_folder(folder)
    return [bits_from_hugging_face(source, weights, described.naming)]


def bits_from_hugging_face(source: CheckpointSource, weights: HFWeights, naming: HFNaming) -> VerifyFinding:
    """The folder's tensors, converted, against Megatron's."""
    for unit in weight_mappings(source.model, naming):
        for first, last in comparison_ranges(source, unit):
            made = join_tensors(unit, [weights.read(part.name, first, last) for part in unit.parts])
            check_same_bits(unit.name, made, source.weights.read(unit, made.dtype, first, last))
    return VerifyFinding("HF -> Megatron", f"every bit equal{rounding_remark(source, weights, naming)}")


def comparison_ranges(source: CheckpointSource, unit: WeightMapping) -> Sequence[tuple[int, int | None]]:
    """Row ranges to compare a unit by: as stored where rows stay rows, else all at once."""
    return source.weights.row_ranges(unit) if len(unit.parts) == 1 else [(0, None)]


def rounding_remark(source: CheckpointSource, weights: HFWeights, naming: HFNaming) -> str:
    """A remark where the folder holds fewer bits than the checkpoint."""
    dtype = weights.dtype(naming.head)
    return "" if source.weights.dtypes == {dtype} else f" after rounding to {str(dtype).removeprefix('torch.')}"


def check_same_bits(name: str, made: Tensor, stored: Tensor) -> None:
    """Raises: UserError unless two tensors are the same bit for bit."""
    if made.dtype != stored.dtype or not torch.equal(made.contiguous().view(torch.uint8), stored.view(torch.uint8)):
        raise difference_error(f"{name} differs from the checkpoint's numbers")


def difference_error(what: str) -> UserError:
    return UserError(what, "a folder that holds this very checkpoint", "export it again, with the right --step")


def compare_rotary(source: CheckpointSource, runnable: ExportedModel) -> VerifyFinding:
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


def compare_logits(
    network: ReferenceNetwork, runnable: ExportedModel, row: ProbeRow, layers: int
) -> list[VerifyFinding]:
    """Logits of both modes against the training-time forward. Raises: UserError beyond the tolerance."""
    noisy, clean = network.logits(row).chunk(2)
    some = "" if network.layers == layers else f" (first {network.layers} of {layers} layers)"
    where = f"positions {row.start:,}..{row.start + len(row.clean) - 1:,}{some}"
    return [
        VerifyFinding("logits, AR", f"off by {logit_distance('AR', runnable.ar_logits(row), clean):.0e}, {where}"),
        VerifyFinding(
            "logits, diffusion", f"off by {logit_distance('diffusion', runnable.block_logits(row), noisy):.0e}, {where}"
        ),
    ]


def logit_distance(mode: str, found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest logit where that is above 1. Raises: UserError."""
    worst = (found.double() - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    if not worst <= TOLERANCE:
        raise difference_error(f"logits in {mode} mode are off by {worst:.1e}")
    return worst
