"""Megatron-Core's GPT model on dual-stream rows."""

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nld_train.model.attention_slot import DualStreamAttention
from nld_train.model.head import position_nll
from nld_train.types import Batch


class DualStreamGPTModel(GPTModel):
    """GPT whose rows are [noisy | clean] with the same positions in both halves, or the clean half alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_attention(self)

    def forward(self, batch: Batch) -> Tensor:
        """Cross-entropy [R_ar + R_diff] of the batch on the last pipeline stage, hidden states [S, B, E] before it."""
        return super().forward(
            input_ids=batch.input_ids,
            position_ids=None,
            attention_mask=batch.documents,
            output_processor=self._position_nll,
            output_processor_context=batch,
        )

    def _position_nll(self, *, hidden_states: Tensor, context: Batch, **_: Any) -> Tensor:
        return position_nll(hidden_states, self.output_layer, context, self.config.sequence_parallel)

    def _preprocess(self, *args: Any, **kwargs: Any) -> tuple:
        decoder_input, _, *rest = super()._preprocess(*args, **kwargs)
        return (decoder_input, self._rotary(), *rest)

    def _rotary(self) -> Tensor:
        """Rotary angles [S, 1, 1, D] of positions 0..L-1, laid once for each half."""
        layout = self.config.layout
        angles, _ = self.rotary_pos_emb(layout.length)
        return torch.cat([angles, angles]) if layout.dual else angles


def check_attention(model: GPTModel) -> None:
    """Fail unless every layer attends through the dual stream's slot."""
    for number, layer in enumerate(model.decoder.layers):
        slot = type(layer.self_attention.core_attention)
        assert slot is DualStreamAttention, f"layer {number} attends with {slot.__name__}, not DualStreamAttention"
