"""Configuration of the tri-mode model with a vision tower: the language model's, and the tower's beside it. This file
travels with every export of such a model.
"""

from typing import Any

from transformers import Mistral3Config, MistralConfig, PixtralVisionConfig

from .configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig, require_input

ARCHITECTURE = "NemotronLabsDiffusionVLMModel"


class NemotronLabsDiffusionVLMConfig(NemotronLabsDiffusionConfig):
    """The language model's settings stand at top level, those of the tower in `vision_config`; the defaults are
    Ministral-3's. An image is `image_token_id` for every cell of spatial_merge_size x spatial_merge_size patches,
    `image_break_token_id` behind every row of cells but the last, and `image_end_token_id` behind that.

    Raises: InputError, a ValueError of one line, for what the modeling files do not compute.
    """

    model_type = "nemotron_labs_diffusion_vlm"
    sub_configs = {"vision_config": PixtralVisionConfig}

    def __init__(
        self,
        vision_config: dict[str, Any] | PixtralVisionConfig | None = None,
        spatial_merge_size: int = 2,
        projector_hidden_act: str = "gelu",
        multimodal_projector_bias: bool = False,
        vision_feature_layer: int = -1,
        image_token_id: int = 10,
        image_break_token_id: int = 12,
        image_end_token_id: int = 13,
        **text_settings: Any,
    ) -> None:
        if not isinstance(vision_config, PixtralVisionConfig):
            published = {"image_size": 1540, "patch_size": 14, "hidden_act": "silu"}
            vision_config = PixtralVisionConfig(**(published if vision_config is None else vision_config))
        self.vision_config = vision_config
        self.spatial_merge_size = spatial_merge_size
        self.projector_hidden_act = projector_hidden_act
        self.multimodal_projector_bias = multimodal_projector_bias
        self.vision_feature_layer = vision_feature_layer
        self.image_token_id = image_token_id
        self.image_break_token_id = image_break_token_id
        self.image_end_token_id = image_end_token_id
        super().__init__(**text_settings)
        ids = (image_token_id, image_break_token_id, image_end_token_id, self.mask_token_id)
        require_input(
            len(set(ids)) == len(ids) and all(0 <= number < self.vocab_size for number in ids),
            f"ids {ids} of image, break, end and mask",
            f"four different ids below vocab_size={self.vocab_size}",
            "correct config.json",
        )
        require_input(
            vision_feature_layer == -1, f"vision_feature_layer={vision_feature_layer}", "-1", "correct config.json"
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        return super().to_dict() | {"architectures": [ARCHITECTURE]}

    def projector_config(self) -> Mistral3Config:
        """The same numbers as transformers' Mistral3MultiModalProjector reads them."""
        text = MistralConfig(hidden_size=self.hidden_size, rms_norm_eps=self.rms_norm_eps)
        # A copy of the tower's: Mistral3Config sets the attention of the one that it is given to none at all.
        return Mistral3Config(
            vision_config=self.vision_config.to_dict(),
            text_config=text,
            spatial_merge_size=self.spatial_merge_size,
            projector_hidden_act=self.projector_hidden_act,
            multimodal_projector_bias=self.multimodal_projector_bias,
            vision_feature_layer=self.vision_feature_layer,
        )
