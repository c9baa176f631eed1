"""Megatron-Core's GPT model on dual-stream rows."""

from typing import Any

from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nld_train.dual_stream.context_shard import ContextShard
from nld_train.dual_stream.row_layout import rotary_positions
from nld_train.model.core_attention import DualStreamAttention, join_row_places, split_row_places
from nld_train.model.position_head import position_logits, position_nll
from nld_train.types import Batch, HeadRequest


class DualStreamGPTModel(GPTModel):
    """GPT whose rows are [noisy | clean] with the same positions in both halves, or the clean half alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shard = ContextShard(self.pg_collection.cp.size(), self.pg_collection.cp.rank())
        # With the group Megatron would shard the angles in its own way; `_rotary` takes those of this rank's positions.
        self.rotary_pos_emb.cp_group = None
        _check_core_attention(self)

    def forward(self, batch: Batch | HeadRequest) -> Tensor:
        """Cross-entropy [R_ar + R_diff] of a Batch, or this tensor rank's logits [R, V / ranks] of a HeadRequest.

        Before the last pipeline stage it is the hidden states [S, B, E] in either case.
        """
        places, ids = join_row_places(batch.documents, batch.clean_only), batch.input_ids
        on_device = None if places is None else places.to(ids.device, non_blocking=True)
        return super().forward(
            input_ids=ids,
            position_ids=None if places is None else rotary_positions(self.config.layout, *split_row_places(on_device)),
            attention_mask=places,
            decoder_input=self._decoder_input(batch),
            output_processor=self._position_logits if isinstance(batch, HeadRequest) else self._position_nll,
            output_processor_context=batch,
        )

    def _decoder_input(self, batch: Batch | HeadRequest) -> Tensor | None:
        """What the decoder is given in place of the embeddings of the batch; None: Megatron embeds the tokens."""
        return None

    def _position_nll(self, *, hidden_states: Tensor, context: Batch, **_: Any) -> Tensor:
        """hidden_states [S, B, E] -> cross-entropy [R_ar + R_diff]."""
        return position_nll(hidden_states, self.output_layer, context, self.config.sequence_parallel)

    def _position_logits(self, *, hidden_states: Tensor, context: HeadRequest, **_: Any) -> Tensor:
        """hidden_states [S, B, E] -> logits [R, V / ranks]."""
        return position_logits(hidden_states, self.output_layer, context.head_positions, self.config.sequence_parallel)

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor | None, **kwargs: Any) -> tuple:
        """Megatron's own preparation, with our rotary angles in place of its own."""
        decoder_input, _, *rest = super()._preprocess(input_ids, position_ids, **kwargs)
        return (decoder_input, self._rotary(position_ids), *rest)

    def _rotary(self, position_ids: Tensor | None) -> Tensor:
        """Rotary angles of the positions that this context rank holds.

        Without position_ids they are those of 0..L-1, the same in both halves: [S/c, 1, 1, D]. With position_ids
        [B, S], where every document starts again at 0, each row has its own: [S/c, B, 1, D].
        """
        layout = self.config.layout
        angles, _ = self.rotary_pos_emb(layout.length)
        here = self.shard.queries(layout, angles.device)
        if position_ids is not None:
            return angles.flatten(1)[position_ids[:, here].T].unsqueeze(2)
        return angles[rotary_positions(layout, device=angles.device)[here]]


def _check_core_attention(model: GPTModel) -> None:
    """Assert that the core_attention of every layer is DualStreamAttention."""
    for number, layer in enumerate(model.decoder.layers):
        kind = type(layer.self_attention.core_attention)
        assert kind is DualStreamAttention, f"layer {number} attends with {kind.__name__}, not DualStreamAttention"
