"""Laws that hold across modes: self-speculation follows AR, batches follow their rows, results add up."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from nld_train.decode import ar, diffusion, quadratic, self_speculation
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError

SETTINGS = DecodeConfig(max_new_tokens=24, block_length=4, threshold=0.5)
MODES = {
    "ar": ar.generate_ar,
    "diffusion": diffusion.generate_diffusion,
    "linear": self_speculation.generate_self_speculation,
    "quadratic": quadratic.generate_quadratic,
}
SPECULATIVE = {"linear": self_speculation.generate_self_speculation, "quadratic": quadratic.generate_quadratic}
every_mode = pytest.mark.parametrize("decode", MODES.values(), ids=MODES)
speculative = pytest.mark.parametrize("decode", SPECULATIVE.values(), ids=SPECULATIVE)


@pytest.fixture(scope="module")
def single(make_model):
    """In float32, as models are served."""
    return make_model(6, dtype=torch.float32)


@pytest.fixture(scope="module")
def greedy(single, ragged):
    return [result.ids for result in ar.generate_ar(single, ragged, SETTINGS)]


@speculative
def test_self_speculation_is_greedy_ar_token_for_token_over_200_prompts(single, ragged, greedy, decode):
    results = decode(single, ragged, SETTINGS)
    assert [result.ids for result in results] == greedy
    lengths = {length for result in results for length in result.accepted_lengths}
    assert lengths == {1, 2, 3, 4}, "not every length of acceptance occurred: the test shows little"


def exact_probabilities(model, prompt: list[int], count: int, temperature: float, top_p: float) -> np.ndarray:
    """Probability of every continuation of `count` tokens under AR, in the order of itertools.product."""
    size = model.config.vocab_size
    continuations = torch.tensor(list(itertools.product(range(size), repeat=count)))
    rows = torch.cat([torch.tensor(prompt).expand(len(continuations), -1), continuations], 1)
    with torch.no_grad():
        logits = model(rows, use_causal_mask=True).logits[:, len(prompt) - 1 : -1]
    probs = (logits / temperature).softmax(-1)
    if top_p < 1:
        above = (probs[..., None, :] > probs[..., :, None]).double() @ probs[..., None]
        probs = torch.where(above.squeeze(-1) < top_p, probs, 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs.gather(-1, continuations[..., None]).squeeze(-1).prod(1).numpy()


def chi_square(results, expected: np.ndarray, size: int, count: int) -> float:
    """p-value of the continuations found, rare ones taken together."""
    counts = np.zeros(len(expected))
    for result in results:
        counts[int("".join(map(str, result.ids[:count])), size)] += 1
    expected = expected * counts.sum()
    if counts[expected == 0].any():
        return 0.0  # a continuation that AR cannot give
    rare = expected < 5
    kept = [(counts[~rare], expected[~rare]), ([counts[rare].sum()], [expected[rare].sum()])]
    observed, wanted = (np.concatenate(part) for part in zip(*kept, strict=True))
    return chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue


def p_value(model, decode, temperature: float, top_p: float, block_length: int) -> float:
    """Of 1500 sampled continuations of 4 tokens, under AR."""
    prompt, count = [4, 5, 0], 4
    settings = DecodeConfig(max_new_tokens=count, block_length=block_length, temperature=temperature, top_p=top_p)
    results = decode(model, [prompt] * 1500, settings)
    return chi_square(results, exact_probabilities(model, prompt, count, temperature, top_p), 6, count)


@pytest.mark.parametrize("decode", [ar.generate_ar, *SPECULATIVE.values()], ids=["ar", *SPECULATIVE])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_sampled_self_speculation_cannot_be_told_from_ar(make_model, decode, temperature, top_p):
    """Two drafts a round: refused at either, accepted whole with a token behind, and a second round all occur."""
    assert p_value(make_model(6, seed=5), decode, temperature, top_p, block_length=3) > 0.001


def test_what_follows_another_distribution_can_be_told(small):
    assert p_value(small, diffusion.generate_diffusion, 1.0, 1.0, block_length=4) < 1e-9


@every_mode
@pytest.mark.parametrize("weight", [0.0, 0.6])
def test_a_ragged_batch_is_its_rows_one_by_one(small, ragged, decode, weight):
    settings = replace(SETTINGS, eos_token_id=(1,), ensemble_weight=weight)
    together = decode(small, ragged[:12], settings)
    for prompt, result in zip(ragged[:12], together, strict=True):
        alone = decode(small, [prompt], settings)[0]
        assert replace(alone, seconds=0) == replace(result, seconds=0)
    assert len({len(result.ids) for result in together}) > 2


@every_mode
def test_each_of_several_ids_ends_a_text_and_so_does_what_the_caller_says(small, ragged, decode):
    for prompt in ragged[:12]:
        full = decode(small, [prompt], SETTINGS)[0].ids
        first = next((place for place, token in enumerate(full, 1) if token in (1, 4)), len(full))
        assert decode(small, [prompt], replace(SETTINGS, eos_token_id=(1, 4)))[0].ids == full[:first]
        pair = full[2:4]
        places = (place for place in range(2, len(full) + 1) if full[place - 2 : place] == pair)
        ended = decode(small, [prompt], SETTINGS, complete=lambda tokens, pair=pair: tokens[-2:] == pair)[0].ids
        assert ended == full[: next(places)]


@every_mode
def test_a_list_of_ids_in_config_json_ends_texts(make_model, ragged, decode):
    plain, listed = make_model(6), make_model(6, eos_token_id=[1, 4])
    for prompt in ragged[:4]:
        wanted = decode(plain, [prompt], replace(SETTINGS, eos_token_id=(1, 4)))[0].ids
        assert decode(listed, [prompt], SETTINGS)[0].ids == wanted


@every_mode
@pytest.mark.parametrize("named", [{"eos_token_id": (1, 6)}, {"max_thinking_tokens": 2, "end_think_token_id": 6}])
def test_an_id_outside_the_vocabulary_is_refused(small, decode, named):
    with pytest.raises(UserError, match="token_id=6; allowed: ids from 0 on below"):
        decode(small, [[4]], replace(SETTINGS, **named))


@every_mode
def test_what_a_result_says_adds_up(small, ragged, decode):
    for prompt, result in zip(ragged[:20], decode(small, ragged[:20], SETTINGS), strict=True):
        assert result.prompt == prompt and len(result.ids) == len(result.order) == 24
        assert result.tokens_per_forward == 24 / result.nfe.total and result.seconds > 0
        assert result.nfe.prefill == 1 and max(result.order) <= result.nfe.total
        # The first token comes with the prefill; in quadratic mode behind the first draft, which may have a say in it.
        assert min(result.order) == (2 if decode is quadratic.generate_quadratic else 1)
        if decode is ar.generate_ar:
            assert result.order == list(range(1, 25)) and result.tokens_per_forward == 1
        if decode in SPECULATIVE.values():
            assert 1 + sum(result.accepted_lengths) == 24
            assert len(result.accepted_lengths) == result.nfe.verify_or_refresh
            assert result.order == sorted(result.order)
        else:
            assert result.accepted_lengths == []


def test_forwards_of_every_mode_on_a_case_made_by_hand(small):
    """8 tokens in blocks of 4 with no agreement asked for: counts that follow from the rules alone."""
    eight = replace(SETTINGS, max_new_tokens=8)
    nfe = ar.generate_ar(small, [[4, 5]], eight)[0].nfe
    assert (nfe.prefill, nfe.draft_or_denoise, nfe.verify_or_refresh) == (1, 0, 7)
    nfe = diffusion.generate_diffusion(small, [[4, 5]], replace(eight, threshold=None))[0].nfe
    assert (nfe.prefill, nfe.draft_or_denoise, nfe.verify_or_refresh) == (1, 6, 1)
    nfe = self_speculation.generate_self_speculation(small, [[4, 5]], replace(eight, block_length=1))[0].nfe
    assert (nfe.prefill, nfe.draft_or_denoise, nfe.verify_or_refresh) == (1, 7, 7)
    nfe = quadratic.generate_quadratic(small, [[4, 5]], replace(eight, block_length=1))[0].nfe
    assert (nfe.prefill, nfe.draft_or_denoise, nfe.verify_or_refresh) == (1, 1, 7)


def test_the_order_of_diffusion_is_the_step_at_which_each_token_was_committed(small):
    one_by_one = diffusion.generate_diffusion(small, [[4, 5]], replace(SETTINGS, max_new_tokens=8, threshold=None))[
        0
    ].order
    assert one_by_one[0] == 1 and sorted(one_by_one[1:4]) == [2, 3, 4], "prefill gives the seed, then 3 steps"
    assert one_by_one[4] == 5 and sorted(one_by_one[5:]) == [6, 7, 8], "so does the refresh"
    at_once = diffusion.generate_diffusion(small, [[4, 5]], replace(SETTINGS, max_new_tokens=8, threshold=0.0))[0].order
    assert at_once == [1, 2, 2, 2, 3, 4, 4, 4]


@every_mode
def test_the_streamer_hears_every_token_of_every_row(small, ragged, decode):
    heard: dict[int, list[int]] = {}
    results = decode(small, ragged[:5], SETTINGS, lambda row, tokens: heard.setdefault(row, []).extend(tokens))
    assert [heard[row] for row in range(5)] == [result.ids for result in results]


@every_mode
def test_sampling_repeats_with_its_seed_and_leaves_torch_alone(small, ragged, decode):
    settings = replace(SETTINGS, temperature=1.0)
    before = torch.get_rng_state()
    runs = [[result.ids for result in decode(small, ragged[:5], replace(settings, seed=seed))] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2] and torch.equal(torch.get_rng_state(), before)


@every_mode
@pytest.mark.parametrize("budget", [0, 5])
def test_thinking_is_ended_within_its_budget(small, ragged, decode, budget):
    settings = replace(SETTINGS, max_thinking_tokens=budget, end_think_token_id=1)
    results = decode(small, ragged[:20], settings)
    assert all(1 in result.ids[: budget + 1] for result in results)
    if decode in SPECULATIVE.values():
        assert [result.ids for result in results] == [
            result.ids for result in ar.generate_ar(small, ragged[:20], settings)
        ]


@every_mode
@pytest.mark.parametrize(
    ("prompts", "changes", "named"),
    [
        ([[4], []], {}, "prompt 1 is empty"),
        ([[4] * 110], {}, "110 tokens with max_new_tokens=24; allowed: 128 positions"),
        ([[6]], {}, "token id 6"),
        ([[4]], {"max_thinking_tokens": 3}, "without end_think_token_id"),
    ],
)
def test_what_cannot_be_decoded_is_refused_in_one_line(small, decode, prompts, changes, named):
    with pytest.raises(UserError, match=named) as caught:
        decode(small, prompts, replace(SETTINGS, **changes))
    assert "\n" not in str(caught.value)


def test_diffusion_refuses_tokens_that_are_no_whole_blocks(small):
    with pytest.raises(UserError, match="max_new_tokens=22 with block_length=4; .*use 24"):
        diffusion.generate_diffusion(small, [[4]], replace(SETTINGS, max_new_tokens=22))


@pytest.mark.parametrize(
    "changes", [{"temperature": -1.0}, {"top_p": 0.0}, {"ensemble_weight": 1.5}, {"block_length": 0}]
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        replace(SETTINGS, **changes)
