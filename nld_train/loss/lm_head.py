"""Cross-entropy straight from hidden states: the logits of all rows and the whole vocabulary never exist at once.

With a vocabulary of 131,072 the float32 logits of one doubled row of 4,096 tokens take 3 GB, and the usual
cross-entropy holds them two or three times. Here the vocabulary is walked through in chunks: the forward pass keeps a
running log-sum-exp, the backward pass computes the logits of each chunk again. The chunks are taken from the vocabulary
and not from the rows, because each part of the weight's gradient is then finished by one product, and only the gradient
of the hidden states, which is small, is accumulated.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nld_train.loss.vocabulary import VocabularyShard, gather_over_ranks, logits_at, sum_over_ranks
from nld_train.row_arithmetic import chunk_width

WHOLE_VOCABULARY = VocabularyShard()


def head_nll(hidden: Tensor, weight: Tensor, targets: Tensor, shard: VocabularyShard = WHOLE_VOCABULARY) -> Tensor:
    """-log softmax(hidden @ weight.T)[target], in nats, for a vocabulary that may be sharded over ranks.

    hidden [R, E] is the same on every rank, and its gradient is summed over the ranks; weight [V / ranks, E] is this
    rank's shard; targets [R] int64 are ids of the whole vocabulary. Sums are float32 whatever the inputs are; float64
    stays float64.
    Returns: [R] float32, the same on every rank.
    """
    nll: Tensor = _HeadNll.apply(hidden, weight, targets, chunk_width(hidden.shape[0]), shard)
    return nll


class _HeadNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, width: int, shard: VocabularyShard
    ) -> Tensor:
        """nll [R] of hidden [R, E], weight [V / ranks, E] and targets [R], in chunks `width` tokens wide."""
        own = targets - shard.offset  # columns of this rank's weight; outside of it where another rank holds the target
        # 1. Over the chunks: log SUM exp(logit), and the logit of each target where this rank holds it.
        log_sum = torch.full(own.shape, -torch.inf, dtype=wide_type(hidden), device=hidden.device)
        picked = torch.zeros_like(log_sum)
        logits = hidden.new_empty(0)
        for chunk in _chunks(weight, width):
            logits = multiply_wide(hidden, weight[chunk].T)
            log_sum = torch.logaddexp(log_sum, logits.logsumexp(1))
            picked += logits_at(logits, own[:, None], VocabularyShard(chunk.start))[:, 0]
        # 2. Over the ranks.
        log_sum, picked = gather_over_ranks(log_sum, shard).logsumexp(0), sum_over_ranks(picked, shard)
        # The last chunk's logits are kept for the backward, so that a small vocabulary is multiplied only once.
        ctx.save_for_backward(hidden, weight, own, log_sum, logits)
        ctx.width, ctx.shard = width, shard
        return log_sum - picked

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Gradients [R, E] and [V / ranks, E], of grad [R]; None for what needs none."""
        hidden, weight, own, log_sum, logits = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.zeros_like(hidden, dtype=wide_type(hidden)) if needs_hidden else None
        weight_grad = torch.empty_like(weight) if needs_weight else None
        last = True
        for chunk in reversed(list(_chunks(weight, ctx.width))):
            if not last:
                logits = multiply_wide(hidden, weight[chunk].T)
            last = False
            share = _logit_gradient(logits, log_sum, own, chunk, grad).to(weight.dtype)
            if hidden_grad is not None:
                hidden_grad += multiply_wide(share, weight[chunk])
            if weight_grad is not None:
                weight_grad[chunk] = multiply_wide(share.T, hidden)
        if hidden_grad is not None:
            hidden_grad = sum_over_ranks(hidden_grad, ctx.shard).to(hidden.dtype)
        return hidden_grad, weight_grad, None, None, None


def _logit_gradient(logits: Tensor, log_sum: Tensor, own: Tensor, chunk: slice, grad: Tensor) -> Tensor:
    """(softmax - one-hot) * grad of one chunk of logits [R, width]: [R, width]. log_sum, own and grad: [R]."""
    gradient = (logits - log_sum[:, None]).exp_()
    inside = (own >= chunk.start) & (own < chunk.stop)
    column = (own - chunk.start).where(inside, 0)
    gradient.scatter_add_(1, column[:, None], -inside.to(gradient)[:, None])
    return gradient.mul_(grad[:, None])


def _chunks(weight: Tensor, width: int) -> Iterator[slice]:
    """Slices of the rows of weight, `width` long; the last one may be shorter."""
    size = weight.shape[0]
    return (slice(start, min(start + width, size)) for start in range(0, size, width))


def wide_type(tensor: Tensor) -> torch.dtype:
    """float32, or the tensor's own type where it is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def multiply_wide(left: Tensor, right: Tensor) -> Tensor:
    """left [M, K] @ right [K, N], summed and returned in float32, or in float64: [M, N]."""
    wide = wide_type(left)
    if left.dtype == wide:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=wide)
    return left.to(wide) @ right.to(wide)
