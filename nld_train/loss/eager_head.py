"""The LM-head loss in another order of work: its gradients are made in its forward. Off until measured on a GPU.

`loss/lm_head.py` walks the vocabulary, and computes every chunk of logits twice: four products. Here the rows are
walked: the logits of a chunk of rows over the whole vocabulary give its losses, and at once its share of both
gradients: three products. It has a price in two places.

1. What each row counts for must be known in the forward, and the result is one weighted sum: a gradient of single rows
   could not be undone in the weight's gradient, which is already summed over the rows.
2. The weight's gradient is read and written once for every chunk of rows, and where weights are bf16 it must be added
   up in float32, [V / ranks, E] beside everything else.

`nld bench loss` and `benchmarks/lm_head.py` compare both orders.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nld_train.loss.lm_head import WHOLE_VOCABULARY, multiply_wide, wide_type
from nld_train.loss.vocabulary import VocabularyShard, gather_over_ranks, logits_at, sum_over_ranks
from nld_train.row_arithmetic import chunk_rows


class EagerHeadLoss(NamedTuple):
    """The weighted sum, which is differentiable, and what it is summed from, which is not."""

    total: Tensor  # []: SUM_r shares_r * nll_r
    nll: Tensor  # [R] float32


def eager_head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, shard: VocabularyShard = WHOLE_VOCABULARY
) -> EagerHeadLoss:
    """SUM_r shares_r * nll_r of `lm_head.head_nll`, whose gradients are made at once, with the [R] nll themselves.

    hidden [R, E], weight [V / ranks, E] and targets [R] are as there; shares [R] is what each row counts for.
    """
    rows = chunk_rows(weight.shape[0])
    return EagerHeadLoss(*_EagerHead.apply(hidden, weight, targets, shares, rows, shard))


class _EagerHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, rows: int, shard: VocabularyShard
    ) -> tuple[Tensor, Tensor]:
        """The sum [] and nll [R], `rows` rows at a time."""
        own = targets - shard.offset  # columns of this rank's weight; outside of it where another rank holds the target
        hidden_grad = torch.empty_like(hidden, dtype=wide_type(hidden))
        weight_grad = torch.zeros_like(weight, dtype=wide_type(weight))
        parts = []
        for start in range(0, len(own), rows):
            here = slice(start, start + rows)
            logits = multiply_wide(hidden[here], weight.T)
            nll = _turn_into_gradient(logits, own[here], shares[here], shard)
            parts.append(nll)
            share = logits.to(weight.dtype)
            hidden_grad[here] = multiply_wide(share, weight)
            if weight.dtype == weight_grad.dtype:
                weight_grad.addmm_(share.T, hidden[here])
            else:
                weight_grad += multiply_wide(share.T, hidden[here])
            del logits, share  # or they would live on beside those of the next rows
        hidden_grad = sum_over_ranks(hidden_grad, shard)
        ctx.save_for_backward(hidden_grad.to(hidden.dtype), weight_grad.to(weight.dtype))
        nll = torch.cat(parts) if parts else shares.new_zeros(0)
        ctx.mark_non_differentiable(nll)
        return (nll * shares).sum(), nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients [R, E] and [V / ranks, E], of grad []."""
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * grad, weight_grad.mul_(grad), None, None, None, None


def _turn_into_gradient(logits: Tensor, own: Tensor, shares: Tensor, shard: VocabularyShard) -> Tensor:
    """Turn logits [r, V / ranks] in place into their gradient, (softmax - one-hot) * shares. Returns: the nll [r].

    own [r] are the targets as columns of this rank's weight, which may lie outside of it.
    """
    # 1. exp(logit - the row's largest), in place: no second table of this size is ever alive.
    here = VocabularyShard(0, shard.group)
    picked = logits_at(logits, own[:, None], here)[:, 0]
    top = logits.amax(1)
    sums = logits.sub_(top[:, None]).exp_().sum(1)
    # 2. The sum over the ranks, and with it softmax times shares.
    log_sum = gather_over_ranks(top + sums.log(), shard).logsumexp(0)
    logits.mul_((shares * (top - log_sum).exp())[:, None])
    inside = (own >= 0) & (own < logits.shape[1])
    logits.scatter_add_(1, own.where(inside, 0)[:, None], -(inside * shares).to(logits)[:, None])
    return log_sum - picked
