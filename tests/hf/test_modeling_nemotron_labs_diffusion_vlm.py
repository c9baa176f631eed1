"""Images in the exported class: where their features go, decoding in every mode, and what is refused."""

import pytest
import torch

from nld_train.hf.configuration_nemotron_labs_diffusion import PUBLISHED_ROPE, InputError
from nld_train.hf.configuration_nemotron_labs_diffusion_vlm import NemotronLabsDiffusionVLMConfig
from nld_train.hf.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.hf.modeling_nemotron_labs_diffusion_vlm import (
    NemotronLabsDiffusionVLMForConditionalGeneration,
    NemotronLabsDiffusionVLMModel,
)
from tests.vision_folder import BREAK, END, IMAGE, image_tokens, random_images, vision_settings

MASK, WIDTH = 3, 40
NEW = {"max_new_tokens": 16}


def make_model(seed: int = 0, kind=NemotronLabsDiffusionVLMModel) -> NemotronLabsDiffusionVLMModel:
    """A tiny model in float64, with wide weights, so that the next token depends on the whole context."""
    torch.manual_seed(seed)
    config = NemotronLabsDiffusionVLMConfig(
        vision_config=vision_settings("silu"), image_token_id=IMAGE, image_break_token_id=BREAK,
        image_end_token_id=END, vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=128, mask_token_id=MASK,
        eos_token_id=None,
        rope_parameters=PUBLISHED_ROPE | {"rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16},
    )  # fmt: skip
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            norm = "norm" in name or "ln_pre" in name
            parameter.copy_(1 + 0.1 * noise if norm else noise if "embed" in name else 0.25 * noise)
        model.diffusion_head.weight[[IMAGE, BREAK, END]] = 0  # never the most probable ones
    return model.double().eval()


@pytest.fixture(scope="module")
def model() -> NemotronLabsDiffusionVLMModel:
    return make_model()


@pytest.fixture(scope="module")
def text_model(model) -> NemotronLabsDiffusionModel:
    """The text class with the same weights."""
    text = NemotronLabsDiffusionModel(model.config).double().eval()
    text.load_state_dict({name: model.state_dict()[name] for name in text.state_dict()})
    return text


def text(count: int, seed: int) -> list[int]:
    return torch.randint(23, WIDTH, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def prompt(sizes: list[tuple[int, int]], seed: int) -> torch.Tensor:
    """[1, P]: images of so many cells, with text around each."""
    ids = text(4, seed)
    for number, size in enumerate(sizes):
        ids += [*image_tokens(*size), *text(3 + number, seed + number)]
    return torch.tensor([ids])


def test_features_stand_in_the_places_of_image_tokens_in_their_order(model) -> None:
    sizes = [(2, 3), (1, 2)]
    ids, images = prompt(sizes, 0), random_images(sizes)
    embedded = model.embed_images(ids, None, **images)
    places = (ids[0] == IMAGE).nonzero()[:, 0]
    alone = [
        model.get_image_features(images["pixel_values"][n : n + 1], images["image_sizes"][n : n + 1]) for n in (0, 1)
    ]
    torch.testing.assert_close(embedded[0, places], torch.cat(alone).to(embedded.dtype), rtol=0, atol=1e-6)
    others = ids[0] != IMAGE
    assert torch.equal(embedded[0, others], model.encoder.embed_tokens(ids[0, others]))


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_the_tower_attends_as_the_language_model_does(model, tmp_path, name) -> None:
    model.save_pretrained(tmp_path)
    loaded = NemotronLabsDiffusionVLMModel.from_pretrained(tmp_path, attn_implementation=name)
    for config in (loaded.config, loaded.encoder.vision_tower.config):
        assert config._attn_implementation == name
    assert model.encoder.vision_tower.config._attn_implementation == "sdpa"


def test_padding_of_pixels_and_of_rows_changes_nothing(model) -> None:
    """Two prompts with different images as one batch, padded on the left by image tokens even, are the two alone."""
    sizes = [(2, 3), (4, 2)]
    rows, images = [prompt([size], seed) for seed, size in enumerate(sizes)], random_images(sizes)
    width = max(row.shape[1] for row in rows)
    assert rows[0].shape[1] < width
    ids = torch.full((2, width), IMAGE)
    real = torch.zeros(2, width, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, width - row.shape[1] :], real[number, width - row.shape[1] :] = row[0], 1
    with torch.no_grad():
        together = model(ids, attention_mask=real, use_causal_mask=True, **images).logits
    decoded, _ = model.ar_generate(ids, attention_mask=real, **NEW, **images)
    for number, (row, (high, wide)) in enumerate(zip(rows, sizes, strict=True)):
        cut = images["pixel_values"][number : number + 1, :, : 8 * high, : 8 * wide]
        own = {"pixel_values": cut, "image_sizes": images["image_sizes"][number : number + 1]}
        with torch.no_grad():
            alone = model(row, use_causal_mask=True, **own).logits
        torch.testing.assert_close(together[number, width - row.shape[1] :], alone[0], rtol=0, atol=1e-5)
        answer, _ = model.ar_generate(row, **NEW, **own)
        assert answer[0, row.shape[1] :].tolist() == decoded[number, width:].tolist()


@pytest.mark.parametrize("seed", range(12))
def test_greedy_self_speculation_is_ar_with_images_before_it(model, seed) -> None:
    sizes = [(1 + seed % 3, 2), (2, 1 + seed % 2)][: 1 + seed % 2]
    ids, images = prompt(sizes, 10 * seed), random_images(sizes, seed)
    expected, forwards = model.ar_generate(ids, **NEW, **images)
    assert forwards == 16 and expected.shape[1] == ids.shape[1] + 16
    found, _ = model.linear_spec_generate(ids, block_length=4, **NEW, **images)
    assert found.tolist() == expected.tolist()
    other, _ = model.ar_generate(ids, **NEW, **random_images(sizes, seed + 100))
    assert other.tolist() != expected.tolist(), "the answer hangs on the images"


def test_the_tower_runs_once_in_a_call(model) -> None:
    seen = []
    hook = model.encoder.vision_tower.register_forward_hook(lambda *_: seen.append(1))
    ids, images = prompt([(2, 2)], 0), random_images([(2, 2)])
    calls = [
        lambda: model.ar_generate(ids, **NEW, **images),
        lambda: model.generate(ids, max_new_tokens=16, block_length=4, threshold=0.5, **images),
        lambda: model.linear_spec_generate(ids, block_length=4, **NEW, **images),
        lambda: model.generate(input_ids=ids, do_sample=False, use_cache=True, **NEW, **images),
    ]
    for number, call in enumerate(calls, 1):
        call()
        assert len(seen) == number
    hook.remove()


def test_transformers_own_generate_is_ar(model) -> None:
    ids, images = prompt([(2, 2), (1, 3)], 0), random_images([(2, 2), (1, 3)])
    expected, _ = model.ar_generate(ids, **NEW, **images)
    for use_cache in (True, False):
        assert model.generate(input_ids=ids, do_sample=False, use_cache=use_cache, **NEW, **images).tolist() == (
            expected.tolist()
        )


def test_an_image_token_that_the_model_makes_is_a_token_like_any() -> None:
    """Nothing keeps a model from it, and no image is looked for behind it."""
    model = make_model()
    with torch.no_grad():
        model.diffusion_head.weight[IMAGE] = torch.randn(32, generator=torch.Generator().manual_seed(0))
    ids, images = prompt([(2, 2)], 0), random_images([(2, 2)])
    expected, _ = model.ar_generate(ids, **NEW, **images)
    assert IMAGE in expected[0, ids.shape[1] :], "the case occurs"
    assert model.linear_spec_generate(ids, block_length=4, **NEW, **images)[0].tolist() == expected.tolist()
    assert model.generate(input_ids=ids, do_sample=False, use_cache=True, **NEW, **images).tolist() == expected.tolist()


def test_a_block_of_diffusion_sees_the_images(model) -> None:
    """The block that `generate` fills, by hand: a causal forward of all before, then the block over its cache."""
    ids, images = prompt([(2, 2)], 5), random_images([(2, 2)], 5)
    found, _ = model.generate(ids, max_new_tokens=4, block_length=4, threshold=0.0, **images)
    with torch.no_grad():
        past = model(ids, use_causal_mask=True, use_cache=True, **images)
        seed = past.logits[:, -1].argmax(-1, keepdim=True)
        block = torch.cat([seed, torch.full((1, 3), MASK)], 1)
        logits = model(block, past_key_values=past.past_key_values, use_causal_mask=False).logits
    logits[..., MASK] = -torch.inf
    assert found[0, ids.shape[1] :].tolist() == [seed.item(), *logits[0, 1:].argmax(-1).tolist()]


def test_text_alone_is_that_of_the_text_class_bit_for_bit(model, text_model) -> None:
    ids = torch.tensor([text(9, 0), text(9, 1)])
    with torch.no_grad():
        for causal in (True, False):
            assert torch.equal(
                model(ids, use_causal_mask=causal).logits, text_model(ids, use_causal_mask=causal).logits
            )
    for decode in (
        lambda each: each.ar_generate(ids, **NEW),
        lambda each: each.generate(ids, max_new_tokens=16, block_length=4, threshold=0.4),
        lambda each: each.linear_spec_generate(ids, block_length=4, **NEW),
        lambda each: (each.generate(input_ids=ids, do_sample=False, **NEW), 0),
    ):
        (found, forwards), (expected, wanted) = decode(model), decode(text_model)
        assert torch.equal(found, expected) and forwards == wanted


def test_images_reach_the_gradient_of_tower_and_projector() -> None:
    model = make_model(kind=NemotronLabsDiffusionVLMForConditionalGeneration).float().train()
    ids, images = prompt([(2, 2)], 0), random_images([(2, 2)])
    labels = ids.clone()
    labels[:, :-3] = -100
    model(ids, labels=labels, **images).loss.backward()
    for name, parameter in model.encoder.vision_tower.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    for name, parameter in model.encoder.multi_modal_projector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


SIX = "6 image tokens .id 20. with 1 images of 4 cells; allowed: one image token for every cell"
REFUSED = {
    "more tokens": (prompt([(2, 3)], 0), random_images([(2, 2)]), SIX),
    "fewer tokens": (prompt([(1, 2)], 0), random_images([(2, 2)]), "2 image tokens .* 1 images of 4 cells"),
    "no pixels": (prompt([(1, 2)], 0), {}, "prompts with 2 image tokens .* and no pixel_values"),
    "no sizes": (prompt([(2, 2)], 0), {"pixel_values": torch.zeros(1, 3, 16, 16)}, "without input_ids or image_sizes"),
    "no whole cells": (
        prompt([(1, 2)], 0),
        {"pixel_values": torch.zeros(1, 3, 16, 16), "image_sizes": torch.tensor([[12, 16]])},
        "image_sizes .* with pixel_values .*; allowed: .* multiples of 8 up to 48",
    ),
    "too large": (
        prompt([(7, 1)], 0),
        {"pixel_values": torch.zeros(1, 3, 56, 8), "image_sizes": torch.tensor([[56, 8]])},
        "multiples of 8 up to 48",
    ),
    "an image cut by rows": (
        torch.tensor([image_tokens(1, 1) * 2 + text(3, 0), image_tokens(1, 2) + text(4, 1)]),
        random_images([(1, 3), (1, 1)]),
        "rows with .2, 2. image tokens for images of .3, 1. cells",
    ),
    "an unknown name": (prompt([(1, 1)], 0), random_images([(1, 1)]) | {"pixels": 3}, "arguments pixels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tokens_and_images_that_do_not_go_together_are_one_line(model, case) -> None:
    ids, images, message = REFUSED[case]
    for decode in (
        lambda: model.ar_generate(ids, **NEW, **images),
        lambda: model.linear_spec_generate(ids, block_length=4, **NEW, **images),
        lambda: model.generate(ids, max_new_tokens=16, block_length=4, **images),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            decode()
        assert isinstance(caught.value, InputError) and "\n" not in str(caught.value)


def test_the_text_class_takes_no_images(text_model) -> None:
    with pytest.raises(InputError, match="arguments image_sizes, pixel_values; .* a model with a vision tower"):
        text_model.ar_generate(torch.tensor([text(4, 0)]), **NEW, **random_images([(1, 1)]))


def test_the_joint_loss_refuses_images(model) -> None:
    ids, images = prompt([(2, 2)], 0), random_images([(2, 2)])
    model.config.dlm_loss_weight = 0.3
    try:
        with pytest.raises(InputError, match="the joint loss with pixel_values"):
            model(ids, labels=ids, **images)
        assert model(ids[:, :4], labels=ids[:, :4]).loss.isfinite()
    finally:
        model.config.dlm_loss_weight = None


@pytest.mark.parametrize(
    "changes", [{"image_token_id": MASK}, {"image_end_token_id": 40}, {"vision_feature_layer": -2}]
)
def test_a_configuration_that_is_not_computed_is_refused(model, changes) -> None:
    with pytest.raises(InputError, match="do: correct config.json"):
        NemotronLabsDiffusionVLMConfig(**model.config.to_dict() | changes)
