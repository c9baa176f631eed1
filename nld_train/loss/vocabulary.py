"""Arithmetic on logits whose vocabulary is cut over tensor-parallel ranks: the whole rows are never gathered.

Letters: R rows, W columns here (V over the T ranks of the group, equal cuts), C chosen tokens of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

ROWS = 512  # rows at a time in wide precision: a row of 131,072 tokens takes 1 MB in float64


@dataclass(frozen=True)
class VocabularyShard:
    """Which columns of the vocabulary this rank holds; by default all of them."""

    offset: int = 0  # token id of the first column here
    group: ProcessGroup | None = None  # the ranks that hold the others, in their order

    @property
    def rank(self) -> int:
        return 0 if self.group is None else distributed.get_rank(self.group)


def gather_over_ranks(tensor: Tensor, cut: VocabularyShard) -> Tensor:
    """The tensors of all ranks, [T, ...]; small ones only."""
    if cut.group is None:
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(cut.group.size())]
    distributed.all_gather(parts, tensor.contiguous(), group=cut.group)
    return torch.stack(parts)


class _Summed(torch.autograd.Function):
    """Sum over the ranks. Each rank goes on to compute the same loss, so the gradient passes through unsummed."""

    @staticmethod
    def forward(_context: object, tensor: Tensor, group: ProcessGroup) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def sum_over_ranks(tensor: Tensor, cut: VocabularyShard) -> Tensor:
    """The sum of the ranks' tensors, on every rank; differentiable."""
    total: Tensor = tensor if cut.group is None else _Summed.apply(tensor, cut.group)
    return total


def _to_wide(logits: Tensor) -> Tensor:
    """In float32, or in float64 where that is what they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def largest_token_ids(logits: Tensor, count: int, cut: VocabularyShard) -> Tensor:
    """Ids of the `count` (at most V) largest logits [R, W], in descending order: [R, C] int64.

    Each rank offers its own largest ones; only those travel.
    """
    values, columns = logits.detach().topk(min(count, logits.shape[-1]))
    offered = gather_over_ranks(_to_wide(values), cut).transpose(0, 1).flatten(1)
    ids = gather_over_ranks(columns + cut.offset, cut).transpose(0, 1).flatten(1)
    return ids.gather(-1, offered.topk(min(count, offered.shape[-1])).indices)


def logits_at(logits: Tensor, ids: Tensor, cut: VocabularyShard) -> Tensor:
    """The logits [R, W] of token ids [R, C], wherever they are held: [R, C] float32; float64 stays float64."""
    column = ids - cut.offset
    here = (column >= 0) & (column < logits.shape[-1])
    found = logits.gather(-1, column.clamp(0, logits.shape[-1] - 1))
    return sum_over_ranks(torch.where(here, _to_wide(found), 0.0), cut)


def log_normalizer(logits: Tensor, cut: VocabularyShard) -> Tensor:
    """log of the sum of exp over the vocabulary of logits [R, W]: [R]; no gradient."""
    own = [_to_wide(part).logsumexp(-1) for part in _row_parts(logits)]
    return gather_over_ranks(torch.cat(own), cut).logsumexp(0)


def sample_token_ids(logits: Tensor, uniforms: Tensor, cut: VocabularyShard) -> Tensor:
    """A token of softmax(logits [R, W]) for each uniform number [R] float64 in [0, 1): [R] int64.

    The first token up to which the probabilities sum to more than the number: one number a row, so that the same
    token is drawn however the vocabulary is cut.
    """
    uniform_parts = uniforms.split(ROWS)
    drawn = [_draw(part, own, cut) for part, own in zip(_row_parts(logits), uniform_parts, strict=True)]
    return torch.cat(drawn)


def _row_parts(logits: Tensor) -> Iterator[Tensor]:
    return iter(logits.detach().split(ROWS))


def _draw(logits: Tensor, uniforms: Tensor, cut: VocabularyShard) -> Tensor:
    precise = logits.double()
    top = gather_over_ranks(precise.amax(-1), cut).amax(0)
    sums = (precise - top[:, None]).exp().cumsum(-1)
    ends = gather_over_ranks(sums[:, -1], cut).cumsum(0)  # [T, R]: where the ranks' shares end
    level = uniforms * ends[-1]
    owner = (ends <= level).sum(0).clamp(max=len(ends) - 1)
    before = ends[cut.rank] - sums[:, -1]
    column = torch.searchsorted(sums, (level - before)[:, None], right=True)[:, 0].clamp(0, logits.shape[-1] - 1)
    return sum_over_ranks(torch.where(owner == cut.rank, column + cut.offset, 0), cut)
