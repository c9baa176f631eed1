"""The LM head, applied to the positions that a loss needs and to no others."""

from megatron.core.tensor_parallel import ColumnParallelLinear, gather_from_sequence_parallel_region
from megatron.core.tensor_parallel.layers import linear_with_frozen_weight
from torch import Tensor

from nld_train.loss.lm_head import head_nll
from nld_train.loss.vocabulary import VocabularyShard
from nld_train.types import Batch


def select_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Rows of hidden [S, B, E] at flat positions [R] (row * S + position). Returns: [R, E]."""
    length, rows, width = hidden.shape
    return hidden.reshape(length * rows, width).index_select(0, sequence_first_index(positions, length, rows))


def sequence_first_index(positions: Tensor, length: int, rows: int) -> Tensor:
    """Where flat positions, row * S + position of B rows, lie in a tensor [S, B]: position * B + row. Any shape."""
    return positions % length * rows + positions // length


def vocabulary_shard(head: ColumnParallelLinear) -> VocabularyShard:
    """Which columns of the vocabulary the head's weight [V / ranks, E] gives on this rank."""
    group = head.tp_group
    return VocabularyShard(group.rank() * head.weight.shape[0], group if group.size() > 1 else None)


def position_nll(hidden: Tensor, head: ColumnParallelLinear, batch: Batch, sequence_parallel: bool) -> Tensor:
    """Cross-entropy of the batch's AR positions, then of its diffusion positions.

    hidden: [S, B, E]; under sequence parallelism this tensor rank's shard of S.
    Returns: [R_ar + R_diff] float32, nats; the same on every tensor rank.
    """
    needed = select_positions(_whole(hidden, head, sequence_parallel), batch.head_positions)
    return head_nll(needed, head.weight, batch.head_targets, vocabulary_shard(head))


def position_logits(hidden: Tensor, head: ColumnParallelLinear, positions: Tensor, sequence_parallel: bool) -> Tensor:
    """This tensor rank's shard of the logits at flat positions [R], from a head that is not trained.

    hidden: as for `position_nll`. Returns: [R, V / ranks].
    """
    needed = select_positions(_whole(hidden, head, sequence_parallel), positions)
    return linear_with_frozen_weight(
        input=needed,
        weight=head.weight,
        bias=None,
        gradient_accumulation_fusion=False,
        allreduce_dgrad=head.tp_group.size() > 1,
        sequence_parallel=False,
        tp_group=head.tp_group,
    )


def _whole(hidden: Tensor, head: ColumnParallelLinear, sequence_parallel: bool) -> Tensor:
    """Hidden states of all positions, [S, B, E]. What follows sums their gradient over the tensor ranks itself, so the
    backward pass here only takes this rank's shard of it."""
    if not sequence_parallel:
        return hidden
    return gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False, group=head.tp_group)
