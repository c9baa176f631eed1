"""Arithmetic on logits whose vocabulary is sharded over tensor-parallel ranks: no row is ever gathered whole.

Letters: R rows; W columns of this rank, W = V / T with the T ranks of the group; C chosen tokens of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

ROWS = 512  # rows that are in wide precision at a time: one of 131,072 tokens takes 1 MB in float64


@dataclass(frozen=True)
class VocabularyShard:
    """Which columns of the vocabulary this rank holds; by default all of them."""

    offset: int = 0  # token id of the first column here
    group: ProcessGroup | None = None  # the ranks that hold the others, in their order

    @property
    def rank(self) -> int:
        """This rank's place in the group."""
        return 0 if self.group is None else distributed.get_rank(self.group)


def gather_over_ranks(tensor: Tensor, shard: VocabularyShard) -> Tensor:
    """The tensors [...] of all ranks, stacked: [T, ...]. Meant for small tensors."""
    if shard.group is None:
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(shard.group.size())]
    distributed.all_gather(parts, tensor.contiguous(), group=shard.group)
    return torch.stack(parts)


class _Summed(torch.autograd.Function):
    """The sum over the ranks. Every rank goes on to compute the same loss, so the gradient is passed on as it is."""

    @staticmethod
    def forward(_context: object, tensor: Tensor, group: ProcessGroup) -> Tensor:
        """The sum [...] of the ranks' tensors [...]."""
        total = tensor.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient [...] as it is."""
        return gradient, None


def sum_over_ranks(tensor: Tensor, shard: VocabularyShard) -> Tensor:
    """The sum of the ranks' tensors [...], the same [...] on every rank. Differentiable."""
    total: Tensor = tensor if shard.group is None else _Summed.apply(tensor, shard.group)
    return total


def _to_wide(logits: Tensor) -> Tensor:
    """The logits in float32; float64 stays float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def largest_token_ids(logits: Tensor, count: int, shard: VocabularyShard) -> Tensor:
    """Ids of the `count` (at most V) largest logits [R, W], in descending order: [R, C] int64.

    Each rank offers its own largest logits, and nothing else is sent.
    """
    values, columns = logits.detach().topk(min(count, logits.shape[-1]))
    offered = gather_over_ranks(_to_wide(values), shard).transpose(0, 1).flatten(1)
    ids = gather_over_ranks(columns + shard.offset, shard).transpose(0, 1).flatten(1)
    return ids.gather(-1, offered.topk(min(count, offered.shape[-1])).indices)


def logits_at(logits: Tensor, ids: Tensor, shard: VocabularyShard) -> Tensor:
    """Pick the logits of token ids [R, C] out of logits [R, W], whichever rank holds them.

    Returns: [R, C] float32, the same on every rank; float64 stays float64.
    """
    column = ids - shard.offset
    here = (column >= 0) & (column < logits.shape[-1])
    found = logits.gather(-1, column.clamp(0, logits.shape[-1] - 1))
    return sum_over_ranks(torch.where(here, _to_wide(found), 0.0), shard)


def log_normalizer(logits: Tensor, shard: VocabularyShard) -> Tensor:
    """log SUM_v exp(logit_v) over the whole vocabulary, of logits [R, W]: [R], without a gradient."""
    own = [_to_wide(part).logsumexp(-1) for part in _row_parts(logits)]
    return gather_over_ranks(torch.cat(own), shard).logsumexp(0)


def sample_token_ids(logits: Tensor, uniforms: Tensor, shard: VocabularyShard) -> Tensor:
    """A token of softmax(logits [R, W]) for each uniform number [R] float64 in [0, 1): [R] int64.

    The token drawn is the first one up to which the probabilities sum to more than the number. It takes one number a
    row, so that the same token is drawn however the vocabulary is sharded.
    """
    uniform_parts = uniforms.split(ROWS)
    drawn = [_draw(part, own, shard) for part, own in zip(_row_parts(logits), uniform_parts, strict=True)]
    return torch.cat(drawn)


def _row_parts(logits: Tensor) -> Iterator[Tensor]:
    return iter(logits.detach().split(ROWS))


def _draw(logits: Tensor, uniforms: Tensor, shard: VocabularyShard) -> Tensor:
    """One token id [R] for logits [R, W] and uniforms [R] float64."""
    # 1. Cumulative sums of exp(logit - largest logit of the row) over this rank's columns, in float64.
    precise = logits.double()
    top = gather_over_ranks(precise.amax(-1), shard).amax(0)
    sums = (precise - top[:, None]).exp().cumsum(-1)
    # 2. Where the shares of the ranks end in the sum over the vocabulary, and in whose share the number falls.
    ends = gather_over_ranks(sums[:, -1], shard).cumsum(0)  # [T, R]
    level = uniforms * ends[-1]
    owner = (ends <= level).sum(0).clamp(max=len(ends) - 1)
    # 3. That rank looks for the column; the others add 0 to the token id.
    before = ends[shard.rank] - sums[:, -1]
    column = torch.searchsorted(sums, (level - before)[:, None], right=True)[:, 0].clamp(0, logits.shape[-1] - 1)
    return sum_over_ranks(torch.where(owner == shard.rank, column + shard.offset, 0), shard)
