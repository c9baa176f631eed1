"""The LM head, applied to the positions a loss needs and to no other."""

from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    gather_from_sequence_parallel_region,
    linear_with_grad_accumulation_and_async_allreduce,
)
from torch import Tensor

from nld_train.loss.lm_head import head_nll
from nld_train.types import Batch


def select(hidden: Tensor, positions: Tensor) -> Tensor:
    """Rows of hidden [S, B, E] at flat positions [R] (row * S + position). Returns: [R, E]."""
    length, rows, width = hidden.shape
    sequence_first = positions % length * rows + positions // length
    return hidden.reshape(length * rows, width).index_select(0, sequence_first)


def logits(selected: Tensor, head: ColumnParallelLinear) -> Tensor:
    """This tensor rank's cut of the logits of selected [R, E], equal on all tensor ranks. Returns: [R, V / ranks]."""
    # The head's own forward would gather the sequence again under sequence parallelism; these rows are already whole.
    return linear_with_grad_accumulation_and_async_allreduce(
        input=selected,
        weight=head.weight,
        bias=None,
        gradient_accumulation_fusion=head.gradient_accumulation_fusion,
        allreduce_dgrad=head.tp_group.size() > 1,
        sequence_parallel=False,
        tp_group=head.tp_group,
    )


def position_nll(hidden: Tensor, head: ColumnParallelLinear, batch: Batch, sequence_parallel: bool) -> Tensor:
    """Cross-entropy of the batch's AR positions, then of its diffusion positions.

    hidden: [S, B, E], or this tensor rank's cut of S under sequence parallelism.
    Returns: [R_ar + R_diff] float32, nats; the same on every tensor rank.
    """
    if sequence_parallel:
        # `head_nll` sums the gradient over the tensor ranks itself, so here it is only cut back, not summed again.
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False, group=head.tp_group)
    needed = select(hidden, batch.head_positions)
    return head_nll(needed, head.weight, batch.head_targets, head.tp_group if head.tp_group.size() > 1 else None)
