"""Rotary numbers against the libraries they must agree with, places, and the cache."""

import math

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nld_train.hf.cache_nemotron_labs_diffusion import build_attention_mask
from nld_train.hf.configuration_nemotron_labs_diffusion import PUBLISHED_ROPE, NemotronLabsDiffusionConfig
from nld_train.hf.modeling_ministral import (
    KVCache,
    inverse_frequencies,
    query_scales,
    rotary_attention_factor,
    token_places,
)

CPU = torch.device("cpu")
TINY = PUBLISHED_ROPE | {"rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 128}
ROPES = [PUBLISHED_ROPE, PUBLISHED_ROPE | {"rope_theta": 1e9}, TINY]


@pytest.mark.parametrize("rope", ROPES)
def test_frequencies_are_those_of_transformers(rope):
    context = int(rope["factor"] * rope["original_max_position_embeddings"])
    config = NemotronLabsDiffusionConfig(rope_parameters=rope, head_dim=128, max_position_embeddings=context)
    theirs, factor = ROPE_INIT_FUNCTIONS["yarn"](config, CPU)
    torch.testing.assert_close(inverse_frequencies(rope, 128, CPU), theirs, rtol=1e-6, atol=0)
    assert rotary_attention_factor(rope) == factor == 1.0


@pytest.mark.megatron
@pytest.mark.parametrize("rope", ROPES)
def test_frequencies_are_those_of_megatron_bit_for_bit(rope):
    from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding

    theirs = YarnRotaryEmbedding(
        128,
        rotary_base=rope["rope_theta"],
        scaling_factor=rope["factor"],
        original_max_position_embeddings=rope["original_max_position_embeddings"],
        beta_fast=rope["beta_fast"],
        beta_slow=rope["beta_slow"],
        mscale=rope["mscale"],
        mscale_all_dim=rope["mscale_all_dim"],
        use_cpu_initialization=True,
    )
    angles, factor = theirs.get_emb(2)  # the angles at position 1 are the frequencies
    assert torch.equal(angles[1, 0, 0, :64].cpu(), inverse_frequencies(rope, 128, CPU))
    assert factor == rotary_attention_factor(rope)


def test_the_attention_factor_grows_with_mscale():
    rope = PUBLISHED_ROPE | {"mscale": 2.0}
    assert rotary_attention_factor(rope) == pytest.approx((0.2 * math.log(16) + 1) / (0.1 * math.log(16) + 1))


def test_the_query_scale_steps_up_at_every_multiple_of_the_original_context():
    positions = torch.tensor([[0, 127, 128, 255, 256]])
    scale = query_scales(positions, TINY, torch.float64).flatten().tolist()
    assert scale == pytest.approx([1, 1, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3)])


def test_padding_on_either_side_leaves_the_places_of_the_tokens_alone():
    real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]).bool()
    assert token_places([0, 5], 4, real, CPU).tolist() == [[2, 3, 0, 1], [5, 6, 7, 8]]
    assert token_places([2, 0], 3, None, CPU).tolist() == [[2, 3, 4], [0, 1, 2]]


def test_a_block_over_a_past_sees_all_of_it_without_a_mask_and_no_more():
    places = token_places([3, 3], 2, None, CPU)
    assert build_attention_mask([3, 3], places, None, cached=True, causal=False).mask is None
    places = token_places([1, 3], 2, None, CPU)
    mask = build_attention_mask([1, 3], places, None, cached=True, causal=False).mask[:, 0].int().tolist()
    assert mask == [[[1, 1, 1, 0, 0]] * 2, [[1, 1, 1, 1, 1]] * 2]


def test_causal_visibility_over_a_past_is_written_out():
    places = token_places([1, 2], 2, None, CPU)
    mask = build_attention_mask([1, 2], places, None, cached=True, causal=True).mask[:, 0].int().tolist()
    assert mask == [[[1, 1, 0, 0], [1, 1, 1, 0]], [[1, 1, 1, 0], [1, 1, 1, 1]]]


def test_padding_is_seen_by_itself_alone():
    real = torch.tensor([[0, 1, 1]]).bool()
    places = token_places([0], 3, real, CPU)
    both_ways = build_attention_mask([0], places, real, cached=False, causal=False).mask[0, 0].int().tolist()
    assert both_ways == [[1, 1, 1], [0, 1, 1], [0, 1, 1]]
    causal = build_attention_mask([0], places, real, cached=False, causal=True).mask[0, 0].int().tolist()
    assert causal == [[1, 1, 1], [0, 1, 0], [0, 1, 1]]


def test_the_cache_keeps_what_it_was_given_when_it_grows():
    cache, places = KVCache(2), torch.arange(300).expand(2, -1)
    key = torch.randn(2, 300, 1, 4)
    cache.write(0, key[:, :10], -key[:, :10], places[:, :10], 10)
    cache.write(0, key[:, 10:], -key[:, 10:], places[:, 10:], 300)
    keys, values = cache.write(0, key[:, :1], -key[:, :1], places[:, :1], 300)
    assert torch.equal(keys, key) and torch.equal(values, -key)


def test_cropping_takes_one_length_or_one_per_row_and_never_adds():
    cache = KVCache(3)
    cache.lengths = [5, 6, 7]
    cache.crop(6)
    assert cache.lengths == [5, 6, 6]
    cache.crop([4, 9, 2])
    assert cache.lengths == [4, 6, 2] and cache.get_seq_length() == 6
