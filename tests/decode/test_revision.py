"""Revision and its budget against a transcription of their definition."""

from dataclasses import replace

import pytest

from nld_train.decode import diffusion
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from tests.decode.slow_blocks import slow_row

BLOCK, NEW = 8, 24
SETTINGS = DecodeConfig(max_new_tokens=NEW, block_length=BLOCK, threshold=0.4, revise=2)
END_OF_THINKING = 1


CASES = {
    "threshold": {},
    "one round": {"revise": 1, "threshold": 0.8},
    "none": {"threshold": None, "revise": 3},
    "budget": {"forwards_per_block": 4, "threshold": 0.9},
    "budget alone": {"forwards_per_block": 5, "threshold": None},
    "the smallest budget": {"forwards_per_block": 3, "threshold": None},
    "end of text": {"eos_token_id": (4,)},
    "end of text, all at once": {"eos_token_id": (4, 0), "threshold": 0.0},
    "thinking": {"max_thinking_tokens": 12, "end_think_token_id": END_OF_THINKING},
    "no revision": {"revise": 0, "forwards_per_block": 3},
}


@pytest.fixture(scope="module")
def some(ragged) -> list[list[int]]:
    return ragged[:10]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_revision_is_its_definition_in_a_batch_and_alone(small, some, changes, temperature):
    settings = replace(SETTINGS, temperature=temperature, **{"eos_token_id": ()} | changes)
    together = diffusion.generate_diffusion(small, some, settings)
    rounds = changed = 0
    for number, (prompt, result) in enumerate(zip(some, together, strict=True)):
        row = slow_row(small, prompt, settings, number).run()
        assert (result.ids, result.order) == (row.tokens, row.order)
        assert result.nfe.total == row.forwards
        rounds, changed = rounds + row.rounds, changed + row.changed
        if temperature == 0:
            alone = diffusion.generate_diffusion(small, [prompt], settings)[0]
            assert replace(alone, seconds=0) == replace(result, seconds=0)
    assert not settings.revise or 0 < changed < rounds + temperature, "rounds that change something, and others"


@pytest.mark.parametrize("threshold", [None, 0.4, 0.9])
@pytest.mark.parametrize(("budget", "rounds"), [(1, 0), (2, 1), (3, 2), (5, 2)])
def test_filling_and_revising_keep_within_the_budget(small, some, threshold, budget, rounds):
    settings = replace(SETTINGS, threshold=threshold, forwards_per_block=budget, revise=rounds)
    for result in diffusion.generate_diffusion(small, some, settings):
        assert len(result.ids) == NEW and result.nfe.draft_or_denoise <= budget * NEW // BLOCK
    plain = diffusion.generate_diffusion(small, some, replace(settings, forwards_per_block=None))
    assert max(result.nfe.draft_or_denoise for result in plain) > budget * NEW // BLOCK, "the budget binds nothing"


def test_a_revision_changes_no_seed_no_forced_token_and_nothing_before_its_block(small, some):
    """Every noisy forward is heard: what stood in the block from the start stands in all of its forwards."""
    settings = replace(SETTINGS, max_thinking_tokens=11, end_think_token_id=END_OF_THINKING, revise=3)
    for prompt in some:
        noisy: list[tuple[list[int], list[int]]] = []
        clean: list[int] = []

        def hear(module, given, named, noisy=noisy, clean=clean):
            ids = given[0][0].tolist()
            if named["use_causal_mask"]:
                clean.extend(ids)
            else:
                noisy.append((list(clean), ids))

        hook = small.register_forward_pre_hook(hear, with_kwargs=True)
        result = diffusion.generate_diffusion(small, [prompt], settings)[0]
        hook.remove()
        whole = prompt + result.ids
        for past, block in noisy:
            assert past == whole[: len(past)], "a block is revised before it is read, never after"
            assert block[0] == whole[len(past)], "the seed"
        assert END_OF_THINKING in result.ids[:12]
        if result.ids.index(END_OF_THINKING) == 11:
            held = [block[3] for past, block in noisy if len(past) == len(prompt) + 8]
            assert set(held) == {END_OF_THINKING}, "thinking is ended by force in the second block"


@pytest.mark.parametrize(("budget", "rounds"), [(2, 2), (1, 3)])
def test_a_budget_without_a_forward_for_every_round_is_refused_in_one_line(small, budget, rounds):
    with pytest.raises(UserError, match=f"forwards_per_block={budget} with revise={rounds}; allowed: {rounds + 1} or"):
        diffusion.generate_diffusion(small, [[4]], replace(SETTINGS, forwards_per_block=budget, revise=rounds))


@pytest.mark.parametrize("changes", [{"revise": -1}, {"forwards_per_block": 0}])
def test_settings_of_blocks_out_of_range_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        replace(SETTINGS, **changes)
