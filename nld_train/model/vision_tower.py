"""The vision tower and its projector, which are transformers' own modules: from images to features of their cells."""

from collections.abc import Callable, Iterator

import torch
from megatron.bridge.utils.common_utils import hook_hf_module_setattr_for_tp_grad_sync
from torch import Tensor, nn
from transformers import Mistral3Config, PixtralVisionModel
from transformers.modeling_utils import local_torch_dtype
from transformers.models.mistral3.modeling_mistral3 import Mistral3MultiModalProjector
from transformers.models.pixtral.modeling_pixtral import PixtralRotaryEmbedding

from nld_train.row_arithmetic import MOST_PATCHES
from nld_train.types import BatchImages
from nld_train.vision_config import VisionConfig, pixtral_settings, projector_settings


class PreciseRotary(PixtralRotaryEmbedding):
    """The tower's rotary embedding, whose angles stay in float32 where the weights become bf16."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PreciseRotary":
        super()._apply(fn, recurse)
        for name, moved in self.named_buffers():
            angles, _ = self.compute_default_rope_parameters(self.config)
            setattr(self, name, angles.to(moved.device))
        return self


def tower_config(vision: VisionConfig, hidden: int, norm_eps: float) -> Mistral3Config:
    """What transformers needs to know of the tower, and of the language model that it stands in front of."""
    return Mistral3Config(
        vision_config=pixtral_settings(vision),
        text_config={"model_type": "mistral", "hidden_size": hidden, "rms_norm_eps": norm_eps},
        **projector_settings(vision),
    )


def build_tower(
    vision: VisionConfig, hidden: int, norm_eps: float, recompute: bool, dtype: torch.dtype
) -> tuple[PixtralVisionModel, Mistral3MultiModalProjector]:
    """The tower and the projector in front of a language model of E = `hidden`, random, made in `dtype`.

    recompute: whether the tower's layers keep their inputs alone, and run again in the backward pass. A tower that is
    not trained has none.
    """
    config = tower_config(vision, hidden, norm_eps)
    with local_torch_dtype(dtype):
        tower, projector = PixtralVisionModel(config.vision_config), Mistral3MultiModalProjector(config)
    tower.patch_positional_embedding = PreciseRotary(config.vision_config)
    if recompute and vision.train_tower:
        tower.gradient_checkpointing_enable({"use_reentrant": False})
    # Every tensor rank computes the same gradients; their average keeps the copies equal to the last bit.
    for module in (tower, projector):
        hook_hf_module_setattr_for_tp_grad_sync(module)
    tower.requires_grad_(vision.train_tower)
    return tower, projector


def image_features(tower: PixtralVisionModel, projector: nn.Module, images: BatchImages) -> Tensor:
    """Features [F, E] of all cells: image by image, and in each row of cells by row of cells."""
    return sized_features(tower, projector, images.pixels, [(height, width) for height, width in images.sizes.tolist()])


def sized_features(
    tower: PixtralVisionModel, projector: nn.Module, pixels: Tensor, sizes: list[tuple[int, int]]
) -> Tensor:
    """The same of pixels [n, 3, H, W] of images of these heights and widths."""
    largest = max(max(size) for size in sizes)
    assert largest <= tower.config.image_size, f"an image of {largest} pixels; resize to {tower.config.image_size}"
    patches = [height * width // tower.patch_size**2 for height, width in sizes]
    return torch.cat([_call_features(tower, projector, pixels[group], sizes[group]) for group in image_calls(patches)])


def image_calls(patches: list[int]) -> Iterator[slice]:
    """Which images go into each call of the tower, in order: those with `MOST_PATCHES` together, or a single image."""
    first, together = 0, 0
    for number, count in enumerate(patches):
        if number > first and together + count > MOST_PATCHES:
            yield slice(first, number)
            first, together = number, 0
        together += count
    yield slice(first, len(patches))


def _call_features(
    tower: PixtralVisionModel, projector: nn.Module, pixels: Tensor, sizes: list[tuple[int, int]]
) -> Tensor:
    """Features [F, E] of the images of one call; pixels [n, 3, H, W] are padded to the largest of the micro-batch."""
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    patches = tower(pixels[:, :, :height, :width], image_sizes=sizes).last_hidden_state[0]
    return projector(patches, sizes)
