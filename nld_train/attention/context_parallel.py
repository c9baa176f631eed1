"""Keys and values under context parallelism: gathered once per layer, their gradients added up and sent back."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from nld_train.dual_stream.context_shard import chunk_order
from nld_train.dual_stream.mask_spec import MaskSpec


def gather_keys_and_values(key: Tensor, value: Tensor, spec: MaskSpec, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """The keys and values of all positions that the rank's queries are given (`ContextShard.keys`).

    key, value [S/c, B, G, D] of the rank's own positions. Returns: both [K, B, G, D]. Collective over `group`.
    """
    own = torch.cat([key, value], -1)  # one exchange for both
    count = spec.shard.tokens(spec.layout)
    given = _Gathered.apply(own[-count:], group)
    if spec.layout.dual:
        # Where a row is one document its noisy blocks lie on one rank whole, so noisy keys need not travel.
        noisy = own[:count]
        given = torch.cat([_Gathered.apply(noisy, group) if spec.packed else noisy, given])
    key, value = given.chunk(2, -1)
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
