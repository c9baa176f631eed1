"""The tower and its projector against transformers' own model, in this process."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nld_train.types import BatchImages
from tests.model.images import CELL, VISION, images_of

pytestmark = pytest.mark.megatron

HIDDEN, EPS = 24, 1e-5
CELLS = [(2, 3), (5, 1), (1, 1), (2, 3), (8, 8), (3, 2)]  # rows and columns; 8 cells are the longest edge


def built(recompute: bool = False, train_tower: bool = True) -> tuple:
    from nld_train.model.vision_tower import build_tower

    torch.manual_seed(2)
    modules = build_tower(replace(VISION, train_tower=train_tower), HIDDEN, EPS, recompute, torch.float32)
    for parameter in (each for module in modules for each in module.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    return modules


def features(modules: tuple, images: BatchImages) -> Tensor:
    from nld_train.model.vision_tower import image_features

    return image_features(*modules, images)


def some_images(cells: list[tuple[int, int]] = CELLS) -> BatchImages:
    return images_of(cells, torch.empty(0, dtype=torch.int64))


def gradients(modules: tuple, images: BatchImages) -> list[Tensor | None]:
    for module in modules:
        module.zero_grad(set_to_none=True)
    made = features(modules, images)
    (made * torch.linspace(-1, 1, made.numel()).view_as(made)).sum().backward()
    return [parameter.grad for module in modules for parameter in module.parameters()]


@pytest.mark.parametrize("cells", [CELLS, CELLS[:1]], ids=["several", "one"])
def test_features_are_those_of_transformers(cells: list[tuple[int, int]]) -> None:
    from transformers.models.mistral3.modeling_mistral3 import Mistral3Model

    from nld_train.model.vision_tower import tower_config

    tower, projector = built()
    config = tower_config(VISION, HIDDEN, EPS)
    for name, value in {"num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 2}.items():
        setattr(config.text_config, name, value)
    theirs = Mistral3Model(config)
    theirs.vision_tower.load_state_dict(tower.state_dict())
    theirs.multi_modal_projector.load_state_dict(projector.state_dict())
    images = some_images(cells)
    expected = torch.cat(theirs.get_image_features(images.pixels, images.sizes, vision_feature_layer=-1).pooler_output)
    got = features((tower, projector), images)
    assert got.shape == (sum(rows * columns for rows, columns in cells), HIDDEN) and got.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_features_do_not_depend_on_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    from nld_train.model import vision_tower

    modules, images = built(), some_images()
    together, slopes = features(modules, images), gradients(modules, images)
    monkeypatch.setattr(vision_tower, "MOST_PATCHES", 30)
    torch.testing.assert_close(features(modules, images), together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(modules, images), slopes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("patches", "calls"),
    [([5], [1]), ([10, 20, 30], [2, 1]), ([40, 1, 29, 1], [1, 2, 1]), ([1, 40, 1], [1, 1, 1]), ([30, 30], [1, 1])],
)
def test_calls_hold_no_more_than_they_may_or_one_image(
    patches: list[int], calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nld_train.model import vision_tower

    monkeypatch.setattr(vision_tower, "MOST_PATCHES", 30)
    found = list(vision_tower.image_calls(patches))
    assert [len(patches[each]) for each in found] == calls
    assert [count for each in found for count in patches[each]] == patches


def test_padding_is_not_seen() -> None:
    modules, images = built(), some_images()
    pixels = images.pixels.clone()
    for image, (height, width) in zip(pixels, images.sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 1e3, -1e3
    wider = torch.nn.functional.pad(pixels, (0, 3 * CELL, 0, CELL), value=7.0)
    torch.testing.assert_close(features(modules, replace(images, pixels=wider)), features(modules, images))


def test_an_image_beyond_the_longest_edge_is_a_mistake_of_the_program() -> None:
    with pytest.raises(AssertionError, match="an image of 72 pixels; resize to 64"):
        features(built(), some_images([(9, 1)]))


def test_recomputation_changes_no_gradient_and_keeps_less() -> None:
    images, kept = some_images(), []
    slopes = []
    for recompute in (False, True):
        modules, saved = built(recompute), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.nbytes) or x, lambda x: x):
            features(modules, images)
        kept.append(sum(saved))
        slopes.append(gradients(modules, images))
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0, atol=0)
    assert all(slope is not None and slope.abs().sum() > 0 for slope in slopes[0])
    assert kept[1] < kept[0] / 2


def test_a_frozen_tower_gets_no_gradient_and_its_projector_does() -> None:
    tower, projector = built(train_tower=False)
    gradients((tower, projector), some_images())
    assert all(parameter.grad is None for parameter in tower.parameters())
    assert all(parameter.grad is not None for parameter in projector.parameters())


def test_angles_stay_in_float32_where_weights_become_bf16() -> None:
    tower, projector = built()
    before = tower.patch_positional_embedding.inv_freq.clone()
    assert before.bfloat16().float().ne(before).any()
    tower.bfloat16()
    assert tower.patch_conv.weight.dtype is torch.bfloat16
    torch.testing.assert_close(tower.patch_positional_embedding.inv_freq, before, rtol=0, atol=0)
    made = features((tower, projector.bfloat16()), some_images())
    assert made.dtype is torch.bfloat16 and made.isfinite().all()


def test_it_is_made_in_the_dtype_of_the_run() -> None:
    from nld_train.model.vision_tower import build_tower

    tower, projector = build_tower(VISION, HIDDEN, EPS, False, torch.bfloat16)
    assert {weight.dtype for module in (tower, projector) for weight in module.parameters()} == {torch.bfloat16}
    assert tower.patch_positional_embedding.inv_freq.dtype is torch.float32
    assert torch.get_default_dtype() is torch.float32
