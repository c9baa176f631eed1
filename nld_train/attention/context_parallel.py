"""Keys and values under context parallelism: gathered once per layer, their gradients added up and sent back."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from nld_train.dual_stream.context_shard import ContextShard, chunk_order
from nld_train.dual_stream.row_layout import RowLayout


def gather_keys_and_values(
    key: Tensor, value: Tensor, layout: RowLayout, cut: ContextShard, packed: bool, group: ProcessGroup
) -> tuple[Tensor, Tensor]:
    """The keys and values that the rank's queries are given, at the positions `cut.keys(layout, packed)`.

    key, value [S/c, B, G, D] of the rank's own positions. Returns: both [K, B, G, D]. Collective over `group`.
    """
    own = torch.cat([key, value], -1)  # one exchange for both
    count = cut.tokens(layout)
    clean = _Gathered.apply(own[-count:], group)
    if layout.dual:
        noisy = own[:count]
        clean = torch.cat([_Gathered.apply(noisy, group) if packed else noisy, clean])
    key, value = clean.chunk(2, -1)
    return key, value


class _Gathered(torch.autograd.Function):
    """Every rank's tokens [L/c, ...] -> all tokens in the order of the row [L, ...]."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        by_rank = own.new_empty((group.size() * own.shape[0], *own.shape[1:]))
        torch.distributed.all_gather_into_tensor(by_rank, own.contiguous(), group=group)
        order = chunk_order(group.size())
        chunks = by_rank.chunk(len(order))
        return torch.cat([chunks[order.index(number)] for number in range(len(order))])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        order = chunk_order(ctx.group.size())
        chunks = gradient.chunk(len(order))
        own = gradient.new_empty((gradient.shape[0] // ctx.group.size(), *gradient.shape[1:]))
        torch.distributed.reduce_scatter_tensor(own, torch.cat([chunks[number] for number in order]), group=ctx.group)
        return own, None
