"""RMSNorm for Megatron's local layers."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class LocalRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm under Megatron's constructor, also for sequence parallelism.

    Megatron's own local norm refuses sequence parallelism. Under it each tensor rank normalises its own shard of the
    sequence, x [S / ranks, B, E], so that its gradient of the weight is partial. The mark on the weight makes Megatron
    sum it over the tensor ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel


class FinalRMSNorm(LocalRMSNorm):
    """The last norm of the network.

    Transformer Engine's last norm writes an extra state into checkpoints, which is empty without quantisation. This one
    writes the same, or a GPU could not go on from a CPU's checkpoint. (Transformer Engine's other norms are parts of
    its linear maps.)
    """

    def get_extra_state(self) -> None:
        """The empty state, as Transformer Engine writes it."""
        return None

    def set_extra_state(self, state: object) -> None:
        """Take the empty state back: there is nothing to do."""
