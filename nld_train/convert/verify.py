"""Proof that a Hugging Face folder holds a Megatron checkpoint: bits both ways, shapes, frequencies, and logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nld_train.convert.config_json import Described, read_traits
from nld_train.convert.export import size_text
from nld_train.convert.hugging_face import Weights, open_folder
from nld_train.convert.network import PROBE_BLOCKS, Network, Probe, frequencies, probe
from nld_train.convert.output import Source
from nld_train.convert.safetensors_file import size_of
from nld_train.convert.table import NLD, Naming, Unit, join, split, tensor_count, units
from nld_train.convert.travelling import Runnable, fitting_layers
from nld_train.errors import UserError

TOLERANCE = 1e-4  # of logits in float32, relative to the largest one where that is above 1
FREQUENCY_TOLERANCE = 1e-6  # relative: the model computes in float32


@dataclass(frozen=True)
class Finding:
    """One thing that was checked, and what was seen."""

    what: str
    seen: str

    def __str__(self) -> str:
        return f"{self.what:<22} {self.seen}"


def verify(source: Source, folder: Path, layers: int | None = None) -> list[Finding]:
    """Compare a folder with the checkpoint it was made from; `layers`: how many are run for logits, None: what fits.

    Raises: UserError that names the first difference.
    """
    described, weights = open_folder(folder)
    check_description(source, described, folder)
    traits = read_traits(described.content, source.model.vocab_size)
    findings = [
        count(source, weights),
        bits_from_megatron(source, weights),
        bits_from_hugging_face(source, weights, NLD),
    ]
    fitting = fitting_layers(source.model) if layers is None else layers
    runnable = Runnable(folder, described, weights, fitting)
    findings.append(rotary(source, runnable))
    network = Network(source.model, source.weights, weights.dtype(NLD.head), fitting)
    for start in starts(source, PROBE_BLOCKS * traits.block_size):
        row = probe(source.model, traits.mask_token_id, traits.block_size, start)
        findings += logits(network, runnable, row, source.model.layers)
    return findings


def check_description(source: Source, described: Described, folder: Path) -> None:
    """Raises: UserError unless config.json is of the NLD format and of the checkpoint's shape."""
    if described.naming is not NLD or described.model != source.model:
        raise UserError(
            f"{folder}/config.json describes another model than {source.output}/model.json",
            "an export of that checkpoint",
            "give the folder and the output that belong together, or export again",
        )


def count(source: Source, weights: Weights) -> Finding:
    """Tensors and bytes of the folder."""
    total = sum(size_of(weights.dtype(name), shape) for name, shape in weights.shapes.items())
    found, expected = len(weights.shapes), tensor_count(source.model)
    assert found == expected, f"{found} tensors, {expected} expected"
    return Finding("tensors", f"{found} = 9 x {source.model.layers} + 3, {total:,} bytes ({size_text(total)})")


def bits_of(source: Source, folder: Path) -> Finding:
    """Whether a folder holds a checkpoint's weights, bit for bit. Raises: UserError."""
    described, weights = open_folder(folder)
    check_description(source, described, folder)
    return bits_from_megatron(source, weights)


def bits_from_megatron(source: Source, weights: Weights) -> Finding:
    """Megatron's tensors, converted, against the folder's."""
    for unit in units(source.model, NLD):
        for first, last in ranges(source, unit):
            made = split(unit, source.weights.read(unit, weights.dtype(unit.parts[0].name), first, last))
            for part, tensor in zip(unit.parts, made, strict=True):
                same_bits(part.name, tensor, weights.read(part.name, first, last))
    return Finding("Megatron -> HF", f"every bit equal{rounding(source, weights, NLD)}")


def verify_import(source: Source, folder: Path) -> list[Finding]:
    """Compare an import with the folder that it was made from. Raises: UserError."""
    described, weights = open_folder(folder)
    return [bits_from_hugging_face(source, weights, described.naming)]


def bits_from_hugging_face(source: Source, weights: Weights, naming: Naming) -> Finding:
    """The folder's tensors, converted, against Megatron's."""
    for unit in units(source.model, naming):
        for first, last in ranges(source, unit):
            made = join(unit, [weights.read(part.name, first, last) for part in unit.parts])
            same_bits(unit.name, made, source.weights.read(unit, made.dtype, first, last))
    return Finding("HF -> Megatron", f"every bit equal{rounding(source, weights, naming)}")


def ranges(source: Source, unit: Unit) -> Sequence[tuple[int, int | None]]:
    """Row ranges to compare a unit by: as stored where rows stay rows, else all at once."""
    return source.weights.row_ranges(unit) if len(unit.parts) == 1 else [(0, None)]


def rounding(source: Source, weights: Weights, naming: Naming) -> str:
    """A remark where the folder holds fewer bits than the checkpoint."""
    dtype = weights.dtype(naming.head)
    return "" if source.weights.dtypes == {dtype} else f" after rounding to {str(dtype).removeprefix('torch.')}"


def same_bits(name: str, made: Tensor, stored: Tensor) -> None:
    """Raises: UserError unless two tensors are the same bit for bit."""
    if made.dtype != stored.dtype or not torch.equal(made.contiguous().view(torch.uint8), stored.view(torch.uint8)):
        raise differs(f"{name} differs from the checkpoint's numbers")


def differs(what: str) -> UserError:
    return UserError(what, "a folder that holds this very checkpoint", "export it again, with the right --step")


def rotary(source: Source, runnable: Runnable) -> Finding:
    """The model's own rotary frequencies against the formula."""
    found = runnable.inverse_frequencies().double()
    expected = frequencies(source.model.rope, source.model.head_dim)
    worst = ((found - expected) / expected).abs().max().item()
    if not worst <= FREQUENCY_TOLERANCE:
        raise differs(f"inv_freq differs by {worst:.1e} of its value from YaRN with the checkpoint's numbers")
    return Finding("inv_freq", f"{len(found)} frequencies, off by {worst:.0e} at most")


def starts(source: Source, row_length: int) -> list[int]:
    """Positions at which a row of logits begins: the first, and one that crosses the original context."""
    rope = source.model.rope
    crossing = max(0, min(rope.original_max_position, rope.max_position - row_length // 2) - row_length // 2)
    return sorted({0, crossing})


def logits(network: Network, runnable: Runnable, row: Probe, layers: int) -> list[Finding]:
    """Logits of both modes against the training-time forward. Raises: UserError beyond the tolerance."""
    noisy, clean = network.logits(row).chunk(2)
    some = "" if network.layers == layers else f" (first {network.layers} of {layers} layers)"
    where = f"positions {row.start:,}..{row.start + len(row.clean) - 1:,}{some}"
    return [
        Finding("logits, AR", f"off by {distance('AR', runnable.ar_logits(row), clean):.0e}, {where}"),
        Finding("logits, diffusion", f"off by {distance('diffusion', runnable.block_logits(row), noisy):.0e}, {where}"),
    ]


def distance(mode: str, found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest logit where that is above 1. Raises: UserError."""
    worst = (found.double() - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    if not worst <= TOLERANCE:
        raise differs(f"logits in {mode} mode are off by {worst:.1e}")
    return worst
