"""The interleaved layout, written out; and the whole mode against an oracle that recomputes every distribution."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nld_train.decode import ar, quadratic
from nld_train.decode.quadratic import forward_interleaved, interleaved_layout, visible_keys
from nld_train.decode.settings import DecodeConfig

MASK, LENGTH, NEW = 3, 3, 12


def test_the_visibility_of_two_tokens_and_their_groups_is_written_out():
    """Two cached places, then tokens s t, then the masks a b behind s and c d behind t."""
    table = visible_keys(interleaved_layout(2), torch.tensor([[[2]]]), 2)[0].int().tolist()
    assert table == [
        # past  s  t  a  b  c  d
        [1, 1, 1, 0, 0, 0, 0, 0],  # s
        [1, 1, 1, 1, 0, 0, 0, 0],  # t
        [1, 1, 1, 0, 1, 1, 0, 0],  # a
        [1, 1, 1, 0, 1, 1, 0, 0],  # b
        [1, 1, 1, 1, 0, 0, 1, 1],  # c
        [1, 1, 1, 1, 0, 0, 1, 1],  # d
    ]
    assert interleaved_layout(2).offset.tolist() == [0, 1, 1, 2, 2, 3]


def test_a_shorter_row_sees_its_own_places_and_not_the_scratch_behind_them():
    table = visible_keys(interleaved_layout(1), torch.tensor([[[1]], [[3]]]), 3).int().tolist()
    assert table == [[[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]


def logits_behind(model, past: list[int]) -> tuple[Tensor, Tensor]:
    """Causal logits [V] behind a text, and noisy logits [k, V] of k masks that continue it; recomputed whole."""
    ids = torch.tensor([past + [MASK] * LENGTH])
    place = torch.arange(ids.shape[1])
    sees = (place[None, :] <= place[:, None]) | (place[:, None] >= len(past))
    with torch.no_grad():
        logits = model(ids, attention_mask=sees[None, None]).logits[0]
    noisy = logits[len(past) :].clone()
    noisy[:, MASK] = -math.inf
    return logits[len(past) - 1], noisy


@torch.no_grad()
def test_one_interleaved_forward_has_the_logits_of_one_forward_per_prefix(small, ragged):
    prompts = [prompt for prompt in ragged if len(prompt) in (4, 9, 17)][:6]
    tokens = torch.tensor([[5, 2, 0]] * len(prompts))
    for prompt, drafted in zip(prompts, tokens, strict=True):
        cache = small(torch.tensor([prompt]), use_cache=True, use_causal_mask=True).past_key_values
        causal, groups = forward_interleaved(small, drafted[None], cache)
        assert cache.lengths == [len(prompt) + LENGTH + LENGTH**2]
        for place in range(LENGTH):
            expected, noisy = logits_behind(small, prompt + drafted[: place + 1].tolist())
            torch.testing.assert_close(causal[0, place], expected, rtol=0, atol=1e-9)
            torch.testing.assert_close(groups[0, place], noisy, rtol=0, atol=1e-9)


def oracle(model, prompt: list[int], weight: float) -> tuple[list[int], int]:
    """Tokens and rounds of quadratic self-speculation at temperature 0, from one recomputed forward per decision."""

    def best(past: list[int]) -> int:
        causal, noisy = logits_behind(model, past)
        return ((1 - weight) * causal.softmax(-1) + weight * noisy[0].softmax(-1)).argmax().item()

    ids, rounds = prompt + [best(prompt)], 0
    drafts = logits_behind(model, prompt)[1][1:].argmax(-1).tolist()
    while len(ids) < len(prompt) + NEW:
        rounds += 1
        agreed = 0
        while agreed < len(drafts) and best(ids + drafts[:agreed]) == drafts[agreed]:
            agreed += 1
        ids = ids + drafts[:agreed]
        drafts = logits_behind(model, ids)[1][1:].argmax(-1).tolist()
        ids = ids + [best(ids)]
    return ids[len(prompt) :][:NEW], rounds


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_quadratic_with_a_cache_is_quadratic_without(small, ragged, weight):
    settings = DecodeConfig(max_new_tokens=NEW, block_length=LENGTH, ensemble_weight=weight)
    for prompt, result in zip(ragged[:12], quadratic.generate_quadratic(small, ragged[:12], settings), strict=True):
        tokens, rounds = oracle(small, prompt, weight)
        assert result.ids == tokens
        assert (result.nfe.prefill, result.nfe.draft_or_denoise, result.nfe.verify_or_refresh) == (1, 1, rounds)


def test_the_ensemble_verifier_has_a_will_of_its_own(small, ragged):
    settings = DecodeConfig(max_new_tokens=NEW, block_length=LENGTH)
    alone = [result.ids for result in ar.generate_ar(small, ragged, settings)]
    mixed = [
        result.ids for result in quadratic.generate_quadratic(small, ragged, replace(settings, ensemble_weight=0.5))
    ]
    assert alone != mixed
