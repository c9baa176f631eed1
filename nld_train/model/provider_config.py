"""What the dual stream adds to Megatron's transformer configuration: plain fields, so that checkpoints can hold it."""

from dataclasses import dataclass

from megatron.bridge.models.gpt_provider import GPTModelProvider

from nld_train.config import AttentionBackend
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.vision_config import VisionConfig


@dataclass(kw_only=True)
class DualStreamConfig(GPTModelProvider):
    """Megatron-Bridge's GPT configuration with the row's layout and the query scale."""

    row_length: int  # L
    block_size: int
    dual: bool
    text_length: int | None = None  # L_text, where rows hold images; None: L
    attention_name: AttentionBackend
    query_scale_beta: float
    vision: VisionConfig | None = None  # the tower in front; None, also in checkpoints of older versions: text alone

    @property
    def layout(self) -> RowLayout:
        """The layout of every row of the run."""
        return RowLayout(self.row_length, self.block_size, self.dual, text_length=self.text_length)
