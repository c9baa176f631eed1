"""The tri-mode model with a vision tower as Hugging Face loads it. This file travels with every export of such a model,
with those that it imports; the tower and its projector are transformers' own classes.

Letters: B rows, n given tokens of a row, N images, F cells of all images, E hidden size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PixtralVisionModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.mistral3.modeling_mistral3 import Mistral3MultiModalProjector

from .cache_nemotron_labs_diffusion import CACHE_FIELD, KVCache
from .configuration_nemotron_labs_diffusion import require_input
from .configuration_nemotron_labs_diffusion_vlm import NemotronLabsDiffusionVLMConfig
from .modeling_ministral import MinistralEncoder
from .modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel

IMAGE_ARGUMENTS = ("pixel_values", "image_sizes")


class MinistralVisionEncoder(MinistralEncoder):
    """The decoder, and the tower and the projector whose outputs take the places of image tokens."""

    def __init__(self, config: NemotronLabsDiffusionVLMConfig) -> None:
        super().__init__(config)
        self.vision_tower = PixtralVisionModel(config.vision_config)
        self.multi_modal_projector = Mistral3MultiModalProjector(config.projector_config())

    def image_features(self, pixel_values: Tensor, image_sizes: Tensor) -> Tensor:
        """Features [F, E] of the cells of all images, image by image and row by row.

        pixel_values: [N, 3, H, W], normalised, padded on the right and below; image_sizes: [N, 2], rows and columns of
        pixels of each image without its padding.
        """
        sizes = [(rows, columns) for rows, columns in image_sizes.tolist()]
        tower = self.vision_tower
        pixels = pixel_values.to(tower.patch_conv.weight.device, tower.patch_conv.weight.dtype)
        seen = tower(pixels, image_sizes=sizes).last_hidden_state
        return self.multi_modal_projector(seen.squeeze(0), sizes)


class NemotronLabsDiffusionVLMModel(NemotronLabsDiffusionModel):
    """The text class, which reads images too.

    `forward`, `generate`, `ar_generate` and `linear_spec_generate` take pixel_values [N, 3, H, W] and image_sizes
    [N, 2], as transformers' PixtralProcessor makes them: the images of all rows, row by row, in the order of their
    tokens. A decoding method runs the tower once, with the prompts. Without images everything is as in the text class.
    """

    config: NemotronLabsDiffusionVLMConfig
    encoder: MinistralVisionEncoder
    config_class = NemotronLabsDiffusionVLMConfig
    encoder_class = MinistralVisionEncoder
    input_modalities = ["image", "text"]
    _no_split_modules = ["MinistralDecoderLayer", "PixtralAttentionLayer"]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: KVCache | Cache | None = None,
        use_cache: bool | None = None,
        use_causal_mask: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        cache: KVCache | Cache | None = None,
        num_items_in_batch: Tensor | int | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        **attention_kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """As `forward` of the text class; the given tokens [B, n] hold one image_token_id for every cell of
        pixel_values [N, 3, H, W], whose rows and columns of pixels are image_sizes [N, 2].

        With images and labels the loss is that of the given tokens, causal or noisy; the joint one, for which
        config.dlm_loss_weight asks, is made of text alone. Raises: InputError, a ValueError of one line.
        """
        if pixel_values is not None:
            require_input(
                labels is None or use_causal_mask is False or self.config.dlm_loss_weight is None,
                "the joint loss with pixel_values",
                "dlm_loss_weight=null with images",
                "set config.dlm_loss_weight=None, or train with nld-train",
            )
            inputs_embeds = self.embed_images(input_ids, attention_mask, pixel_values, image_sizes)
        return super().forward(
            input_ids,
            attention_mask,
            position_ids,
            labels,
            inputs_embeds,
            past_key_values,
            use_cache,
            use_causal_mask,
            logits_to_keep,
            return_dict,
            output_hidden_states,
            output_attentions,
            cache,
            num_items_in_batch,
            **attention_kwargs,
        )

    def get_image_features(self, pixel_values: Tensor, image_sizes: Tensor) -> Tensor:
        """Features [F, E] of the cells of all images, as they take the places of image tokens."""
        return self.encoder.image_features(pixel_values, image_sizes)

    def embed_images(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, pixel_values: Tensor, image_sizes: Tensor | None
    ) -> Tensor:
        """The embeddings [B, n, E] of input_ids [B, n], with the images' features in the places of image tokens.

        Raises: InputError where tokens and images do not go together.
        """
        require_input(
            input_ids is not None and image_sizes is not None,
            "pixel_values without input_ids or image_sizes",
            "all three, as the processor makes them",
            "give them together",
        )
        assert input_ids is not None and image_sizes is not None
        places = self._image_places(input_ids, attention_mask)
        self._check_images(places, pixel_values, image_sizes)
        embedded = self.encoder.embed_tokens(input_ids)
        features = self.get_image_features(pixel_values, image_sizes).to(embedded.device, embedded.dtype)
        return embedded.masked_scatter(places[..., None], features)

    def _image_places(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Where image tokens stand among input_ids [B, n]: [B, n] bool. Padding, whatever its id, is none."""
        places = input_ids == self.config.image_token_id
        if attention_mask is None or attention_mask.dim() != 2:
            return places
        return places & attention_mask[:, -input_ids.shape[1] :].bool()

    def _check_images(self, places: Tensor, pixel_values: Tensor, image_sizes: Tensor) -> None:
        """Raises: InputError unless every image has the size of whole cells within its pixels, and as many tokens in
        one row as it has cells."""
        cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
        height, width = pixel_values.shape[-2:]
        sizes = image_sizes.tolist()
        largest = self.config.vision_config.image_size
        require_input(
            len(sizes) == len(pixel_values)
            and all(
                0 < rows <= min(height, largest)
                and 0 < columns <= min(width, largest)
                and rows % cell == columns % cell == 0
                for rows, columns in sizes
            ),
            f"image_sizes {sizes} with pixel_values {list(pixel_values.shape)}",
            f"rows and columns of every image, multiples of {cell} up to {largest} within its pixels",
            "give pixel_values and image_sizes of one call of the processor",
        )
        cells = [rows // cell * (columns // cell) for rows, columns in sizes]
        tokens = places.sum(1).tolist()
        require_input(
            sum(cells) == sum(tokens),
            f"{sum(tokens)} image tokens (id {self.config.image_token_id}) with {len(cells)} images of {sum(cells)} "
            "cells",
            "one image token for every cell",
            "give the processor's input_ids with its pixel_values and image_sizes",
        )
        ends = torch.tensor([0, *cells]).cumsum(0).tolist()
        require_input(
            all(end in ends for end in torch.tensor(tokens).cumsum(0).tolist()),
            f"rows with {tokens} image tokens for images of {cells} cells",
            "whole images in every row, in the order of the rows",
            "order the images as the rows are",
        )

    def prepare_inputs_for_generation(self, *given: Any, **kwargs: Any) -> dict[str, Any]:
        """transformers' own decoding shows the images with the prompt alone, where a cache keeps what they gave."""
        inputs = super().prepare_inputs_for_generation(*given, **kwargs)
        past = inputs.get(CACHE_FIELD)
        return inputs | (dict.fromkeys(IMAGE_ARGUMENTS) if past is not None and past.get_seq_length() > 0 else {})

    def prefill_images(self, prompts: Sequence[Sequence[int]], images: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the prefill is given beside the tokens of `prompts`, checked: pixel_values [N, 3, H, W] and image_sizes
        [N, 2] of `images`, where they are no None.

        Raises: InputError for other names, and for prompts whose image tokens have no image.
        """
        others = sorted(images.keys() - set(IMAGE_ARGUMENTS))
        require_input(not others, f"arguments {', '.join(others)}", "those of the method", "correct the names")
        given = {name: tensor for name, tensor in images.items() if tensor is not None}
        tokens = sum(list(prompt).count(self.config.image_token_id) for prompt in prompts)
        require_input(
            not tokens or "pixel_values" in given,
            f"prompts with {tokens} image tokens (id {self.config.image_token_id}) and no pixel_values",
            "the images with their tokens",
            "give pixel_values and image_sizes, or leave the tokens out",
        )
        return given


class NemotronLabsDiffusionVLMForConditionalGeneration(NemotronLabsDiffusionVLMModel):
    """The same model for programs that know image-text models which read from left to right: `forward` attends
    causally where its caller does not say. AutoModelForImageTextToText loads it.
    """

    always_causal = True
