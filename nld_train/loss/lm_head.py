"""Cross-entropy straight from hidden states: the logits of all rows and the whole vocabulary never exist at once.

With a vocabulary of 131,072 the float32 logits of one doubled row of 4,096 tokens take 3 GB, and the usual
cross-entropy holds them two or three times. Here the vocabulary is walked through in chunks, forward (running
log-sum-exp) and backward (logits of a chunk computed again). Chunks of the vocabulary, not of the rows: each part of
the weight's gradient is then finished by one product, and only the small one of the hidden states is accumulated.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nld_train.loss.vocabulary import VocabularyShard, gather_over_ranks, logits_at, sum_over_ranks
from nld_train.row_arithmetic import chunk_width

WHOLE_VOCABULARY = VocabularyShard()


def head_nll(hidden: Tensor, weight: Tensor, targets: Tensor, cut: VocabularyShard = WHOLE_VOCABULARY) -> Tensor:
    """-log softmax(hidden @ weight.T)[target], in nats, for a vocabulary that may be cut over ranks.

    hidden [R, E], the same on every rank, its gradient summed over the ranks; weight [V / ranks, E], this rank's cut;
    targets [R] int64, of the whole vocabulary. Sums are float32 whatever the inputs are; float64 stays float64.
    Returns: [R] float32, the same on every rank.
    """
    nll: Tensor = _HeadNll.apply(hidden, weight, targets, chunk_width(hidden.shape[0]), cut)
    return nll


class _HeadNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, width: int, cut: VocabularyShard) -> Tensor:
        own = targets - cut.offset
        sum_exp = torch.full(own.shape, -torch.inf, dtype=_wide(hidden), device=hidden.device)  # its logarithm
        picked = torch.zeros_like(sum_exp)  # the logit of each target, on the rank that holds it
        logits = hidden.new_empty(0)
        for chunk in _chunks(weight, width):
            logits = _product(hidden, weight[chunk].T)
            sum_exp = torch.logaddexp(sum_exp, logits.logsumexp(1))
            picked += logits_at(logits, own[:, None], VocabularyShard(chunk.start))[:, 0]
        sum_exp, picked = gather_over_ranks(sum_exp, cut).logsumexp(0), sum_over_ranks(picked, cut)
        # The last chunk's logits are kept for the backward, so that a small vocabulary is multiplied only once.
        ctx.save_for_backward(hidden, weight, own, sum_exp, logits)
        ctx.width, ctx.cut = width, cut
        return sum_exp - picked

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, own, sum_exp, logits = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.zeros_like(hidden, dtype=_wide(hidden)) if needs_hidden else None
        weight_grad = torch.empty_like(weight) if needs_weight else None
        last = True
        for chunk in reversed(list(_chunks(weight, ctx.width))):
            if not last:
                logits = _product(hidden, weight[chunk].T)
            last = False
            share = _logit_gradient(logits, sum_exp, own, chunk, grad).to(weight.dtype)
            if hidden_grad is not None:
                hidden_grad += _product(share, weight[chunk])
            if weight_grad is not None:
                weight_grad[chunk] = _product(share.T, hidden)
        if hidden_grad is not None:
            hidden_grad = sum_over_ranks(hidden_grad, ctx.cut).to(hidden.dtype)
        return hidden_grad, weight_grad, None, None, None


def _logit_gradient(logits: Tensor, sum_exp: Tensor, own: Tensor, chunk: slice, grad: Tensor) -> Tensor:
    """(softmax - one-hot) * grad of one chunk: [R, width]."""
    gradient = (logits - sum_exp[:, None]).exp_()
    inside = (own >= chunk.start) & (own < chunk.stop)
    column = (own - chunk.start).where(inside, 0)
    gradient.scatter_add_(1, column[:, None], -inside.to(gradient)[:, None])
    return gradient.mul_(grad[:, None])


def _chunks(weight: Tensor, width: int) -> Iterator[slice]:
    size = weight.shape[0]
    return (slice(start, min(start + width, size)) for start in range(0, size, width))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, summed and returned in float32, or in float64."""
    wide = _wide(left)
    if left.dtype == wide:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=wide)
    return left.to(wide) @ right.to(wide)
