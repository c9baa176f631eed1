"""The network written out in plain torch on Megatron's own tensors: what an export's logits are compared with.

It runs the training-time forward, [noisy | clean] at once, in float64, with one layer's weights in memory at a time.
Letters: L tokens of the row, S = 2L, E hidden size, V vocabulary size, D head dimension.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from nld_train.attention.reference import attend_reference
from nld_train.config import ModelConfig, RopeConfig
from nld_train.convert import weight_table
from nld_train.convert.adapter import StoredAdapter
from nld_train.convert.torch_dist import StoredWeights
from nld_train.convert.weight_table import NLD, WeightMapping
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout, rotary_positions

PROBE_BLOCKS = 3
FREQUENCY_TOLERANCE = 1e-6  # relative: the model computes in float32
PROBED = 8192  # ids of a larger vocabulary whose logits are compared


@dataclass(frozen=True)
class ProbeRow:
    """A row to compare logits on."""

    clean: Tensor  # [L] int64
    noisy: Tensor  # [L] int64: the same with masks
    block_size: int
    start: int  # position of its first token

    @property
    def layout(self) -> RowLayout:
        return RowLayout(len(self.clean), self.block_size, dual=True)


def probed_token_ids(vocab_size: int, mask_token_id: int) -> Tensor:
    """The ids, ascending, whose logits are compared, and of which probe rows are made: all, or the first PROBED and the
    mask. Every bit of the others is compared too; their logits would take most of the time and of the memory."""
    if vocab_size <= PROBED:
        return torch.arange(vocab_size)
    return torch.tensor(sorted({*range(PROBED), mask_token_id}))


def consecutive_ranges(ids: Tensor) -> list[tuple[int, int]]:
    """The ranges [first, last) that ascending ids consist of."""
    cuts = (ids.diff() != 1).nonzero()[:, 0] + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in ids.tensor_split(cuts.tolist())]


def make_probe_row(model: ModelConfig, mask_token_id: int, block_size: int, start: int) -> ProbeRow:
    """PROBE_BLOCKS blocks of random tokens, two thirds of them masked; the same for every call."""
    generator = torch.Generator().manual_seed(start)
    clean = torch.randint(min(model.vocab_size, PROBED), (PROBE_BLOCKS * block_size,), generator=generator)
    masked = torch.rand(len(clean), generator=generator) < 2 / 3
    return ProbeRow(clean, clean.masked_fill(masked, mask_token_id), block_size, start)


def reference_frequencies(rope: RopeConfig, dim: int) -> Tensor:
    """YaRN (arXiv 2309.00071, NTK by parts): [D / 2] radians per position, float64."""
    plain = rope.theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def dimension_turning(turns: float) -> float:
        return dim * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = max(math.floor(dimension_turning(rope.beta_fast)), 0)
    high = min(math.ceil(dimension_turning(rope.beta_slow)), dim - 1)
    stretched = ((torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain * (1 - stretched) + plain / rope.factor * stretched


def reference_attention_factor(rope: RopeConfig) -> float:
    """YaRN's factor on sine and cosine: 1 where mscale equals mscale_all_dim."""
    grown = 0.1 * math.log(max(rope.factor, 1.0))
    return (grown * rope.mscale + 1.0) / (grown * rope.mscale_all_dim + 1.0)


class ReferenceNetwork:
    """Megatron's tensors as a function; weights are rounded to `dtype` first, as an export's are."""

    def __init__(
        self,
        model: ModelConfig,
        weights: StoredWeights,
        dtype: torch.dtype,
        layers: int,
        adapter: StoredAdapter | None = None,
    ) -> None:
        """layers: how many of the model's layers are run, from the first one on. adapter: a drafter's, which is on in
        the noisy half alone."""
        self.adapter = adapter
        self.model, self.weights, self.dtype, self.layers = model, weights, dtype, layers
        self.units = {(unit.name, unit.layer): unit for unit in weight_table.weight_mappings(model, NLD)}

    def logits(self, row: ProbeRow, ids: Tensor | None = None, frequencies: Tensor | None = None) -> Tensor:
        """Logits of [noisy | clean], [S, V] float64; of ascending `ids` alone where they are given, [S, len(ids)].

        frequencies: the rotary ones of the model that is compared, [D / 2] float32, for their rounding; None: none.
        """
        hidden = self._embed(torch.cat([row.noisy, row.clean]))
        angles = rotary_angles(row, reference_frequencies(self.model.rope, self.model.head_dim), frequencies)
        for layer in range(self.layers):
            hidden = hidden + self._attention(hidden, layer, row, angles)
            hidden = hidden + self._mlp(hidden, layer)
        hidden = self._norm(hidden, weight_table.FINAL_NORM, None)
        head = self.units[weight_table.HEAD, None]
        ranges = self.weights.row_ranges(head) if ids is None else consecutive_ranges(ids)
        return torch.cat([hidden @ self.weights.read(head, self.dtype, *rows).double().T for rows in ranges], -1)

    def _weight(self, name: str, layer: int | None) -> Tensor:
        return self.weights.read(self.units[name, layer], self.dtype).double()

    def _rows(self, unit: WeightMapping) -> Iterator[tuple[int, Tensor]]:
        """The stored row ranges of a vocabulary tensor: first row, and numbers."""
        for first, last in self.weights.row_ranges(unit):
            yield first, self.weights.read(unit, self.dtype, first, last)

    def _embed(self, ids: Tensor) -> Tensor:
        hidden = torch.empty(len(ids), self.model.hidden, dtype=torch.float64)
        unit = self.units[weight_table.EMBEDDING, None]
        for first, rows in self._rows(unit):
            here = (ids >= first) & (ids < first + len(rows))
            hidden[here] = rows[ids[here] - first].double()
        return hidden

    def _norm(self, x: Tensor, name: str, layer: int | None) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.model.norm_eps)
        return x * scale * self._weight(name, layer)

    def _attention(self, hidden: Tensor, layer: int, row: ProbeRow, angles: Tensor) -> Tensor:
        model, rope = self.model, self.model.rope
        normed = self._norm(hidden, weight_table.ATTENTION_NORM, layer)
        per_group = model.heads // model.kv_heads
        groups = (normed @ self._weight(weight_table.QKV, layer).T).unflatten(
            -1, (model.kv_heads, per_group + 2, model.head_dim)
        )
        query, key, value = (
            part.flatten(1, 2).transpose(0, 1)[None] for part in groups.split([per_group, 1, 1], dim=-2)
        )
        place = rotary_positions(row.layout) + row.start
        wraps = torch.div(place, rope.original_max_position, rounding_mode="floor").double()
        scale = 1 + rope.query_scale_beta * torch.log1p(wraps)
        query = rotate_heads(query, angles, reference_attention_factor(rope)) * scale[:, None]
        key = rotate_heads(key, angles, reference_attention_factor(rope))
        seen = attend_reference(query, key, value, MaskSpec(row.layout), model.head_dim**-0.5)
        seen = seen[0].transpose(0, 1).flatten(1)
        output = seen @ self._weight(weight_table.ATTENTION_OUT, layer).T
        if self.adapter is not None:
            a, b = (part.double() for part in self.adapter.of_layer(layer))
            output[: row.layout.clean_start] += self.adapter.scale * (seen[: row.layout.clean_start] @ a.T) @ b.T
        return output

    def _mlp(self, hidden: Tensor, layer: int) -> Tensor:
        normed = self._norm(hidden, weight_table.MLP_NORM, layer)
        gate, up = (normed @ self._weight(weight_table.MLP_IN, layer).T).chunk(2, -1)
        return (silu(gate) * up) @ self._weight(weight_table.MLP_OUT, layer).T


def rotary_angles(row: ProbeRow, exact: Tensor, frequencies: Tensor | None) -> Tensor:
    """Angles [S, D / 2] float64 of every position, from the formula's frequencies [D / 2].

    Where a model's own `frequencies` are those but for rounding, its rounded ones are taken, and the products are
    rounded as its are: at position 16,384 that moves an angle by 0.001, which logits show and which is no fault.
    """
    place = rotary_positions(row.layout) + row.start
    if frequencies is None:
        return place[:, None] * exact
    rounded = torch.where((frequencies - exact).abs() <= FREQUENCY_TOLERANCE * exact, frequencies, exact)
    return (place[:, None].to(frequencies.dtype) * rounded.to(frequencies.dtype)).double()


def rotate_heads(x: Tensor, angles: Tensor, factor: float) -> Tensor:
    """Rotary embedding of x [B, heads, S, D] by angles [S, D / 2], halves paired."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos() * factor, angles.sin() * factor
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
