"""The model with a tower in front, on one real rank; tests/distributed/test_vision.py has the other layouts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nld_train.config import RunConfig
from nld_train.types import Batch
from tests.distributed.ranks import on
from tests.model.build import build
from tests.model.images import VISION, batch_with_images, vision_run, without_images

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_rank")]

TOWER = ("vision_tower.", "multi_modal_projector.")


def slopes(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor | None]:
    """Gradients of all parameters, of the sum of the batch's cross-entropy."""
    model.zero_grad(set_to_none=True)
    model(batch=batch).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def text_run(run: RunConfig) -> RunConfig:
    return replace(run, vision=None)


def text_model_of(run: RunConfig, model: torch.nn.Module) -> torch.nn.Module:
    """The text model with the weights of a vision model."""
    text = build(text_run(run))
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(TOWER)}
    text.load_state_dict(kept)
    return text


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_without_an_image_it_is_the_text_model_to_the_last_bit(alpha: float) -> None:
    run = vision_run(on(1), alpha=alpha)
    model, batch = build(run), without_images(batch_with_images(run))
    text = text_model_of(run, model)
    assert torch.equal(model(batch=batch), text(batch=batch))
    got, expected = slopes(model, batch), slopes(text, batch)
    for name, slope in got.items():
        if name.startswith(TOWER):
            assert slope is not None and not slope.any(), name
        else:
            assert torch.equal(slope, expected[name]), name


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_features_stand_in_for_the_embeddings_of_their_cells(alpha: float) -> None:
    """What the text model makes of the same row whose cells are embedded as the features."""
    from nld_train.model.vision_tower import image_features

    run = vision_run(on(1), alpha=alpha)
    model, batch = build(run), batch_with_images(run)
    text = text_model_of(run, model)
    features = image_features(model.vision_tower, model.multi_modal_projector, batch.images)
    embedded = text.embedding(batch.input_ids, None).transpose(0, 1).flatten(0, 1).clone()
    for position, feature in zip(batch.images.positions.tolist(), features, strict=True):
        assert batch.input_ids.flatten()[position] == VISION.image_token_id
        embedded[position] = feature
    given = embedded.view(*batch.input_ids.shape, -1).transpose(0, 1)
    text._decoder_input = lambda _: given
    nll = model(batch=batch)
    torch.testing.assert_close(nll, text(batch=batch), rtol=0, atol=0)
    assert not torch.equal(nll, model(batch=without_images(batch)))


def test_gradients_reach_every_part_and_no_cell_is_an_embedding() -> None:
    run = vision_run(on(1))
    model = build(run)
    got = slopes(model, batch_with_images(run))
    for name, slope in got.items():
        assert slope is not None and slope.abs().max() > 0, name
    # In the clean half: these rows are symmetric, and the noisy copies of the cells' tokens are embedded.
    run = vision_run(on(1), alpha=0.0)
    embedding = slopes(build(run), batch_with_images(run))["embedding.word_embeddings.weight"]
    assert not embedding[VISION.image_token_id].any() and embedding[VISION.break_token_id].any()


def test_an_image_is_seen_in_its_own_row_alone() -> None:
    run = vision_run(on(1))
    model, batch = build(run), batch_with_images(run)
    pixels = batch.images.pixels.clone()
    pixels[-1] += 1.0
    other = replace(batch, images=replace(batch.images, pixels=pixels))
    changed = model(batch=batch) != model(batch=other)
    row = batch.head_positions // run.positions
    assert changed[row == 1].any() and not changed[row == 0].any()


def test_a_frozen_tower_stays_and_the_projector_and_the_text_are_trained() -> None:
    run = vision_run(on(1))
    model = build(replace(run, vision=replace(VISION, train_tower=False)))
    got = slopes(model, batch_with_images(run))
    for name, slope in got.items():
        assert (slope is None) == name.startswith("vision_tower."), name


def test_every_feature_has_a_place() -> None:
    run = vision_run(on(1))
    model, batch = build(run), batch_with_images(run)
    short = replace(batch, images=replace(batch.images, positions=batch.images.positions[1:]))
    with pytest.raises(AssertionError, match="28 cells of images for 27 positions"):
        model(batch=short)


def test_logits_are_asked_for_behind_images_too() -> None:
    from nld_train.types import HeadRequest

    run = vision_run(on(1))
    model, batch = build(run), batch_with_images(run)
    asked = HeadRequest(batch.input_ids, None, batch.ar_positions, images=batch.images)
    nll = torch.nn.functional.cross_entropy(model(batch=asked).float(), batch.ar_targets, reduction="none")
    torch.testing.assert_close(nll, model(batch=batch)[: len(nll)], rtol=1e-4, atol=1e-4)
