"""RMSNorm for Megatron's local layers."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class LocalRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm under Megatron's constructor, also for sequence parallelism.

    Megatron's own local norm refuses sequence parallelism. There each tensor rank normalises its cut of the sequence,
    so the weight's gradient is partial: marking the weight makes Megatron sum it over the tensor ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel


class FinalRMSNorm(LocalRMSNorm):
    """The last norm. Transformer Engine's stores a state of quantisation, empty without it; so does this one, or a GPU
    could not go on from a CPU's checkpoint. (The other norms are parts of linear maps there.)"""

    def get_extra_state(self) -> None:
        return None

    def set_extra_state(self, state: object) -> None:
        pass
