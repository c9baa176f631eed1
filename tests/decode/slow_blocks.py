"""Block diffusion with a budget and with revision, and infilling, as they are defined: one row, no cache, lists."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nld_train.decode.run import prompt_generators
from nld_train.decode.settings import DecodeConfig
from tests.decode.conftest import MASK


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
        count = 1 if len(logits) == 1 else self.settings.block_length  # a short block behind a gap is padded
        level = torch.rand(count, dtype=torch.float64, generator=self.generator)[: len(logits)] * sums[:, -1]
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
        return None if budget is None or self.settings.end_think_token_id in self.tokens else budget

    def first_end(self) -> int:
        """The place of the block's first end of text, or its last place."""
        ends = [place for place, token in enumerate(self.block) if token in self.settings.eos_token_id]
        return min([*ends, len(self.block) - 1])

    def run(self) -> "SlowRow":
        """Block diffusion: the seed token, a block behind it, and so on."""
        size = self.settings.block_length
        while len(self.tokens) < self.settings.max_new_tokens and not self.ended():
            seed = self.draw(self.logits([]))[0]
            if self.forced_place() == len(self.tokens):
                seed = self.settings.end_think_token_id
            block, masks, until = [seed] + [MASK] * (size - 1), set(range(1, size)), 0
            forced = None if seed == self.settings.end_think_token_id else self.forced_place()
            if forced is not None and 0 < forced - len(self.tokens) < size:
                until = forced - len(self.tokens)
                block[until] = self.settings.end_think_token_id
                masks.remove(until)
            self.fill(block, masks, until)
            self.take(size)
        return self

    def run_gap(self, after: list[int], length: int) -> "SlowRow":
        """Infilling: one block of `length` masks and what stands behind them, with no seed."""
        self.forwards = 1 if self.prompt else 0
        self.fill([MASK] * length + after, set(range(length)), 0)
        self.take(length)
        return self

    def ended(self) -> bool:
        return bool(self.tokens) and self.tokens[-1] in self.settings.eos_token_id

    def take(self, count: int) -> None:
        """The first `count` tokens of the block, up to its first end of text, become text."""
        count = min(count, self.first_end() + 1)
        self.tokens += self.block[:count]
        self.order += self.steps[:count]

    def fill(self, block: list[int], masks: set[int], until: int) -> None:
        """Fill the masks of a block and revise them. No thinking ends before the place `until`."""
        self.block, self.masks, self.until, self.step = block, set(masks), until, 0
        self.steps, self.sure = [self.forwards] * len(block), [0.0] * len(block)
        self.denoise(self.settings.revise)
        for rounds_left in reversed(range(self.settings.revise)):
            read = [place for place in range(self.first_end() + 1) if place in masks - self.masks]
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

    def certainty(self, logits: Tensor, drawn: list[int]) -> dict[int, float]:
        """How sure the drawn token of every mask is: its probability."""
        probs = logits.float().softmax(-1)
        return {place: probs[place, drawn[place]].item() for place in self.masks}

    def denoise(self, kept: int) -> None:
        """Until nothing is open; `kept` forwards of the budget are for later rounds."""
        budget, threshold = self.settings.forwards_per_block, self.settings.threshold
        while any(place <= self.first_end() for place in self.masks):
            logits = self.logits(self.block)
            if self.until:
                logits[: self.until, self.settings.end_think_token_id] = -math.inf
            drawn = self.draw(logits)
            prob = self.certainty(logits, drawn)
            share = 1 if budget is None else math.ceil(len(prob) / (budget - self.step - kept))
            for rank, place in enumerate(sorted(prob, key=lambda place: (-prob[place], place))):
                if rank < share or (threshold is not None and prob[place] >= threshold):
                    self.block[place], self.sure[place] = drawn[place], prob[place]
                    self.steps[place] = self.forwards
                    self.masks.remove(place)
            self.step += 1


def slow_row(model, prompt: list[int], settings: DecodeConfig, number: int = 0) -> SlowRow:
    """A row that draws as row `number` of a batch does."""
    return SlowRow(model, settings, prompt, prompt_generators(settings.seed, number + 1)[number])
