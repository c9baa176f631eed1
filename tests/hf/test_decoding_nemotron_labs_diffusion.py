"""Every decoding loop against an oracle that recomputes the whole row in one forward per decision, without a cache."""

import math

import pytest
import torch
from torch import Generator, Tensor

from nld_train.hf.configuration_nemotron_labs_diffusion import InputError

MASK, BLOCK, NEW = 3, 4, 12


def causal_logits(model, ids: list[int]) -> Tensor:
    """[n, V] of a row, recomputed."""
    with torch.no_grad():
        return model(torch.tensor([ids]), use_causal_mask=True).logits[0]


def noisy_logits(model, past: list[int], block: list[int]) -> Tensor:
    """[block, V] of a noisy block behind a past that sees itself causally, recomputed in one forward."""
    ids = torch.tensor([past + block])
    place = torch.arange(ids.shape[1])
    sees = (place[None, :] <= place[:, None]) | (place[:, None] >= len(past))
    with torch.no_grad():
        logits = model(ids, attention_mask=sees[None, None]).logits[0, len(past) :]
    logits[:, MASK] = -math.inf
    return logits


def oracle_ar(model, prompt: list[int], new: int = NEW) -> list[int]:
    ids = list(prompt)
    for _ in range(new):
        ids.append(causal_logits(model, ids)[-1].argmax().item())
    return ids[len(prompt) :]


def oracle_diffusion(model, prompt: list[int], threshold: float | None, steps: int = BLOCK) -> tuple[list[int], int]:
    """Tokens and forwards of block diffusion: seed, denoising with all of its rules, refresh."""
    ids, forwards = list(prompt), 0
    while len(ids) < len(prompt) + NEW:
        forwards += len(ids) > len(prompt)
        block = [causal_logits(model, ids)[-1].argmax().item()] + [MASK] * (BLOCK - 1)
        masked = set(range(1, BLOCK))
        for step in range(BLOCK):
            if not masked:
                break
            forwards += 1
            best = noisy_logits(model, ids, block).softmax(-1).max(-1)
            ranked = sorted(masked, key=lambda place: (-best.values[place].item(), place))
            share = math.ceil(len(masked) / max(steps - step, 1))
            sure = [place for place in ranked if threshold is not None and best.values[place] >= threshold]
            for place in {*ranked[:share], *sure}:
                block[place] = best.indices[place].item()
                masked.remove(place)
        ids += block
    return ids[len(prompt) :], forwards


def oracle_linear(model, prompt: list[int]) -> tuple[list[int], int]:
    """Tokens and forwards of linear self-speculation."""
    ids = prompt + [causal_logits(model, prompt)[-1].argmax().item()]
    forwards = 1
    while len(ids) < len(prompt) + NEW:
        forwards += 2
        drafts = noisy_logits(model, ids[:-1], [ids[-1]] + [MASK] * (BLOCK - 1))[1:].argmax(-1).tolist()
        right = causal_logits(model, ids + drafts)[len(ids) - 1 :].argmax(-1).tolist()
        agreed = next((place for place, draft in enumerate(drafts) if draft != right[place]), len(drafts))
        ids += drafts[:agreed] + [right[agreed]]
    return ids[len(prompt) :][:NEW], forwards


@pytest.fixture(scope="module")
def small(tiny_model):
    """Six tokens: drafts agree often enough that every length of acceptance occurs."""
    return tiny_model(seed=1, vocab_size=6)


@pytest.fixture
def prompts(random_ids):
    return [random_ids(1, 1 + 3 * row, seed=row, vocabulary=6)[0].tolist() for row in range(6)]


def padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Left-padded ids and their mask."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    return ids, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def test_ar_is_greedy_and_its_forwards_are_its_tokens(small, prompts):
    for prompt in prompts:
        ids, nfe = small.ar_generate(torch.tensor([prompt]), max_new_tokens=NEW)
        assert ids[0].tolist() == prompt + oracle_ar(small, prompt) and nfe == NEW


@pytest.mark.parametrize(
    ("threshold", "steps"),
    [
        (0.9, None),
        (0.4, None),
        (0.0, None),
        (1.0, None),
        (None, None),
        (None, 2),
        (None, 1),
        (0.4, 2),
        (1.0, 2),
        (0.9, 1),
        (0.4, 9),
    ],
)
def test_diffusion_with_a_cache_is_diffusion_without(small, prompts, threshold, steps):
    for prompt in prompts:
        ids, nfe = small.generate(torch.tensor([prompt]), NEW, BLOCK, threshold, forwards_per_block=steps)
        tokens, forwards = oracle_diffusion(small, prompt, threshold, steps or BLOCK)
        assert ids[0].tolist() == prompt + tokens and nfe == forwards


def test_a_budget_of_forwards_holds_and_one_as_long_as_the_block_changes_nothing(small, prompts):
    for prompt in prompts:
        for threshold in (0.4, 0.9, None):
            free = small.generate(torch.tensor([prompt]), NEW, BLOCK, threshold)
            wide = small.generate(torch.tensor([prompt]), NEW, BLOCK, threshold, forwards_per_block=BLOCK)
            assert torch.equal(free[0], wide[0]) and free[1] == wide[1]
            for budget in (1, 2):
                nfe = small.generate(torch.tensor([prompt]), NEW, BLOCK, threshold, forwards_per_block=budget)[1]
                assert nfe <= budget * NEW // BLOCK + NEW // BLOCK - 1


def test_linear_self_speculation_with_a_cache_is_the_same_without(small, prompts):
    for prompt in prompts:
        ids, nfe = small.linear_spec_generate(torch.tensor([prompt]), NEW, BLOCK)
        tokens, forwards = oracle_linear(small, prompt)
        assert ids[0].tolist() == prompt + tokens == prompt + oracle_ar(small, prompt) and nfe == forwards


def test_forwards_of_a_case_made_by_hand(small):
    """12 tokens in blocks of 4: 3 masks a block behind its seed; the last block is not refreshed."""
    prompt = torch.tensor([[4, 5]])
    assert small.ar_generate(prompt, 12)[1] == 12
    assert small.generate(prompt, 12, 4, threshold=None)[1] == 3 * 3 + 2
    assert small.generate(prompt, 12, 4, threshold=0.0)[1] == 3 * 1 + 2
    assert small.generate(prompt, 12, 4, threshold=None, forwards_per_block=2)[1] == 3 * 2 + 2
    assert small.generate(prompt, 12, 4, threshold=None, causal_context=False)[1] == 3 * 4 + 2
    assert small.generate(prompt, 12, 1)[1] == 11
    assert small.linear_spec_generate(prompt, 12, block_length=1)[1] == 1 + 2 * 11, "no drafts: a token per round"
    assert small.linear_spec_generate(prompt, 1)[1] == 1, "the prefill gives the first token"


CALLS = {
    "ar": lambda model, ids, **more: model.ar_generate(ids, NEW, **more),
    "threshold": lambda model, ids, **more: model.generate(ids, NEW, BLOCK, threshold=0.5, **more),
    "even": lambda model, ids, **more: model.generate(ids, NEW, BLOCK, forwards_per_block=2, **more),
    "budget": lambda model, ids, **more: model.generate(ids, NEW, BLOCK, 0.5, forwards_per_block=2, **more),
    "revision": lambda model, ids, **more: model.generate(ids, NEW, BLOCK, 0.5, revise=2, **more),
    "no causal context": lambda model, ids, **more: model.generate(ids, NEW, BLOCK, 0.5, causal_context=False, **more),
    "linear": lambda model, ids, **more: model.linear_spec_generate(ids, NEW, BLOCK, **more),
    "linear, short drafts": lambda model, ids, **more: model.linear_spec_generate(
        ids, NEW, BLOCK, threshold=0.6, **more
    ),
}


def dividing_token(made: list[list[int]]) -> int:
    """The token whose first place, or absence, differs most between rows."""
    return max(range(6), key=lambda token: len({row.index(token) if token in row else NEW for row in made}))


@pytest.mark.parametrize("ending", [False, True], ids=["to the limit", "ending early"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_ragged_batch_is_its_rows_one_by_one(small, prompts, call, temperature, ending):
    def run(some: list[int], **more) -> list[list[int]]:
        ids, mask = padded([prompts[row] for row in some])
        seeded = [Generator().manual_seed(row) for row in some]
        made, _ = call(small, ids, attention_mask=mask, generator=seeded, temperature=temperature, **more)
        return made[:, mask.shape[1] :].tolist()

    settings = {"max_thinking_tokens": 7, "end_think_token_id": 2}
    everybody = list(range(len(prompts)))
    eos = dividing_token(run(everybody, **settings)) if ending else None
    together = run(everybody, eos_token_id=eos, **settings)
    lengths = set()
    for row, made in enumerate(together):
        alone = run([row], eos_token_id=eos, **settings)[0]
        lengths.add(len(alone))
        assert made == alone + [eos] * (len(made) - len(alone)), "a shorter row is filled with the end of sequence"
    assert (len(lengths) > 1) == ending


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_streamer_hears_the_tokens_and_a_seed_repeats_them(small, prompts, call):
    ids, mask = padded(prompts)
    heard: dict[int, list[int]] = {row: [] for row in range(len(prompts))}

    def run(seed: int, streamer=None) -> list[list[int]]:
        made, _ = call(
            small, ids, attention_mask=mask, temperature=1.0, generator=Generator().manual_seed(seed), streamer=streamer
        )
        return made[:, mask.shape[1] :].tolist()

    made = run(1, lambda row, tokens: heard[row].extend(tokens))
    assert list(heard.values()) == made == run(1) != run(2)


def test_a_row_ends_with_its_end_of_sequence_and_diffusion_with_the_first_that_has_no_mask_before_it(small, prompts):
    for prompt in prompts:
        full = oracle_ar(small, prompt)
        for call in (small.ar_generate, small.linear_spec_generate):
            ended = call(torch.tensor([prompt]), NEW, eos_token_id=full[5])[0][0, len(prompt) :].tolist()
            assert ended == full[: full.index(full[5]) + 1]
        whole = small.generate(torch.tensor([prompt]), NEW, BLOCK, threshold=0.5)[0][0, len(prompt) :].tolist()
        ended = small.generate(torch.tensor([prompt]), NEW, BLOCK, 0.5, eos_token_id=whole[5])[0][
            0, len(prompt) :
        ].tolist()
        assert ended == whole[: whole.index(whole[5]) + 1]


def test_diffusion_stops_before_its_block_is_full_when_nothing_after_the_end_matters(tiny_model):
    """Denoising from the left, so that the end of sequence at place 1 leaves masks behind it."""
    for seed in range(20):
        model = tiny_model(seed=seed, vocab_size=6)
        prompt = torch.tensor([[4, 5]])
        whole, nfe = model.generate(prompt, 8, 8)
        eos = whole[0, 3].item()
        ended, fewer = model.generate(prompt, 8, 8, eos_token_id=eos)
        assert eos in ended[0, 2:].tolist() and fewer <= nfe
        if fewer < nfe:
            return
    pytest.fail("no seed stopped early")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("budget", [0, 1, 5, 8])
def test_thinking_ends_within_its_budget_and_only_once_by_force(small, prompts, call, budget):
    end = 1
    for prompt in prompts:
        free = call(small, torch.tensor([prompt]))[0][0, len(prompt) :].tolist()
        made = call(small, torch.tensor([prompt]), max_thinking_tokens=budget, end_think_token_id=end)[0]
        made = made[0, len(prompt) :].tolist()
        assert len(made) == NEW and end in made[: budget + 1]
        if end in free[:budget] and call is CALLS["ar"]:
            assert made == free
        if made.index(end) == budget:
            assert end not in made[:budget]


def test_the_budget_of_self_speculation_is_that_of_ar(small, prompts):
    for prompt in prompts:
        settings = {"max_thinking_tokens": 5, "end_think_token_id": 1}
        ar = small.ar_generate(torch.tensor([prompt]), NEW, **settings)[0]
        assert torch.equal(small.linear_spec_generate(torch.tensor([prompt]), NEW, BLOCK, **settings)[0], ar)


def test_the_mask_is_never_part_of_a_denoised_text(tiny_model):
    model = tiny_model(vocab_size=6)
    with torch.no_grad():
        model.diffusion_head.weight[MASK] = 0  # logit 0 everywhere, and above every other token's
        for other in {0, 1, 2, 4, 5}:
            model.diffusion_head.weight[other] *= 1e-3
    ids, _ = model.generate(torch.tensor([[4, 5]]), 8, 4, threshold=0.0, causal_context=False, temperature=2.0)
    assert MASK not in ids[0, 2:].tolist()


def test_a_request_that_cannot_be_met_is_refused_before_anything_runs(model):
    prompt = torch.tensor([[4, 5]])
    for refused in (
        lambda: model.generate(prompt, 10, 4),
        lambda: model.generate(prompt, 8, 4, forwards_per_block=0),
        lambda: model.generate(prompt, 8, 4, revise=-1),
        lambda: model.generate(prompt, 8, 4, forwards_per_block=2, revise=2),
        lambda: model.ar_generate(prompt, 127),
        lambda: model.ar_generate(prompt[:, :0]),
        lambda: model.linear_spec_generate(prompt, mask_token_id=40),
        lambda: model.ar_generate(prompt, max_thinking_tokens=4),
    ):
        with pytest.raises(InputError):
            refused()
