"""Revision and its budget against a transcription of their definition: one row, no cache, lists."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from nld_train.decode import diffusion
from nld_train.decode.run import prompt_generators
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from tests.decode.conftest import MASK

BLOCK, NEW = 8, 24
SETTINGS = DecodeConfig(max_new_tokens=NEW, block_length=BLOCK, threshold=0.4, revise=2)
END_OF_THINKING = 1


@dataclass
class SlowRow:
    """The transcription: text so far, and what is recorded of it."""

    model: object
    settings: DecodeConfig
    prompt: list[int]
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    forwards: int = 0
    rounds: int = 0  # of revision
    changed: int = 0  # rounds that changed something

    def draw(self, logits: Tensor) -> list[int]:
        """One token for every position, logits [n, V]."""
        if self.settings.temperature == 0:
            return logits.argmax(-1).tolist()
        sums = (logits / self.settings.temperature).float().softmax(-1).double().cumsum(-1)
        level = torch.rand(len(logits), dtype=torch.float64, generator=self.generator) * sums[:, -1]
        return [int((row <= bound).sum()) for row, bound in zip(sums, level, strict=True)]

    def logits(self, block: list[int]) -> Tensor:
        """Of a noisy block behind the text, or without a block of the token behind the text."""
        self.forwards += 1
        past = self.prompt + self.tokens
        place = torch.arange(len(past) + len(block))
        sees = (place[None, :] <= place[:, None]) | (place[:, None] >= len(past))
        with torch.no_grad():
            logits = self.model(torch.tensor([past + block]), attention_mask=sees[None, None]).logits[0]
        if not block:
            return logits[-1:]
        logits[:, MASK] = -math.inf
        return logits[len(past) :]

    def forced_place(self) -> int | None:
        budget = self.settings.max_thinking_tokens
        return None if budget is None or END_OF_THINKING in self.tokens else budget

    def first_end(self) -> int:
        """The place of the block's first end of text, or its last place."""
        ends = [place for place, token in enumerate(self.block) if token in self.settings.eos_token_id]
        return min([*ends, BLOCK - 1])

    def run(self) -> "SlowRow":
        while len(self.tokens) < NEW:
            seed = self.draw(self.logits([]))[0]
            if self.forced_place() == len(self.tokens):
                seed = END_OF_THINKING
            self.fill(seed)
            made = self.tokens
            ends = [place for place, token in enumerate(made) if token in self.settings.eos_token_id]
            if ends:
                del self.tokens[ends[0] + 1 :], self.order[ends[0] + 1 :]
                break
        return self

    def fill(self, seed: int) -> None:
        self.block, self.steps = [seed] + [MASK] * (BLOCK - 1), [self.forwards] * BLOCK
        self.sure, self.step, self.until = [0.0] * BLOCK, 0, 0
        self.masks = set(range(1, BLOCK))
        forced = None if seed == END_OF_THINKING else self.forced_place()
        if forced is not None and 0 < forced - len(self.tokens) < BLOCK:
            self.until = forced - len(self.tokens)
            self.block[self.until] = END_OF_THINKING
            self.masks.remove(self.until)
        free = set(self.masks)
        self.denoise(self.settings.revise)
        for rounds_left in reversed(range(self.settings.revise)):
            read = [place for place in range(self.first_end() + 1) if place in free - self.masks]
            again = sorted(read, key=lambda place: (self.sure[place], place))[: math.ceil(len(read) / 4)]
            if not again:
                break
            before = list(self.block)
            for place in again:
                self.block[place] = MASK
                self.masks.add(place)
            self.denoise(rounds_left)
            changed = any(self.block[place] != before[place] for place in again)
            self.rounds, self.changed = self.rounds + 1, self.changed + changed
            if not changed:
                break
        self.tokens += self.block
        self.order += self.steps

    def denoise(self, kept: int) -> None:
        """Until nothing is open; `kept` forwards of the budget are for later rounds."""
        budget, threshold = self.settings.forwards_per_block, self.settings.threshold
        while any(place <= self.first_end() for place in self.masks):
            logits = self.logits(self.block)
            logits[: self.until, END_OF_THINKING] = -math.inf
            drawn, probs = self.draw(logits), logits.float().softmax(-1)
            prob = {place: probs[place, drawn[place]].item() for place in self.masks}
            share = 1 if budget is None else math.ceil(len(prob) / (budget - self.step - kept))
            for rank, place in enumerate(sorted(prob, key=lambda place: (-prob[place], place))):
                if rank < share or (threshold is not None and prob[place] >= threshold):
                    self.block[place], self.sure[place] = drawn[place], prob[place]
                    self.steps[place] = self.forwards
                    self.masks.remove(place)
            self.step += 1


def slow(model, prompt: list[int], settings: DecodeConfig, number: int = 0) -> SlowRow:
    return SlowRow(model, settings, prompt, prompt_generators(settings.seed, number + 1)[number]).run()


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
        row = slow(small, prompt, settings, number)
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
