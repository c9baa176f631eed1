"""The rows of one decoding call: prompts, tokens, and when a row ends. This file travels with every export."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .configuration_nemotron_labs_diffusion import InputError, require_input

Streamer = Callable[[int, list[int]], None]  # called with a row's number and its new tokens
Complete = Callable[[list[int]], bool]  # called with a row's generated tokens: whether its text ends behind them
TokenIds = int | Sequence[int] | None  # one, several or none, as config.json spells them
Kind = Literal["prefill", "draft", "verify"]


@dataclass(frozen=True)
class ThinkingBudget:
    """Generated tokens after which the end of thinking comes by force, where it has not come before."""

    tokens: int
    end_token_id: int


@dataclass(frozen=True)
class GenerationLimits:
    """When a row ends, and when its thinking does."""

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]  # any of them ends a row
    thinking: ThinkingBudget | None
    complete: Complete | None = None


@dataclass
class Generation:
    """One prompt and what was made of it."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)  # generated
    steps: list[int] = field(default_factory=list)  # the row's forward that set each token last; the prefill is 1
    gains: list[int] = field(default_factory=list)  # tokens that each verification of a draft added
    forwards: Counter[Kind] = field(default_factory=Counter)
    ended: bool = False
    thought: bool = False  # the end of thinking has come

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)


class Generations:
    """The rows of one call."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        limits: GenerationLimits,
        streamer: Streamer | None = None,
        images: Mapping[str, Tensor] | None = None,
    ) -> None:
        """images: what the prefill is given beside the prompts' tokens; None: nothing."""
        self.images: Mapping[str, Tensor] = {} if images is None else images
        self.rows = [Generation(list(prompt)) for prompt in prompts]
        self.limits, self.streamer = limits, streamer
        self.forwards: Counter[Kind] = Counter()  # of the batch: a row that waits for others does not count them

    def __getitem__(self, number: int) -> Generation:
        return self.rows[number]

    @property
    def active(self) -> list[int]:
        """Numbers of the rows that have not ended."""
        return [number for number, row in enumerate(self.rows) if not row.ended]

    @property
    def lengths(self) -> list[int]:
        return [row.length for row in self.rows]

    def last_tokens(self) -> Tensor:
        """[B, 1] int64."""
        return torch.tensor([[row.tokens[-1]] for row in self.rows])

    def count(self, kind: Kind, active: Sequence[int]) -> None:
        """One forward, for each active row."""
        self.forwards[kind] += 1
        for number in active:
            self.rows[number].forwards[kind] += 1

    def extend(self, number: int, tokens: Sequence[int], steps: Sequence[int] | None = None) -> int:
        """Append tokens up to the row's end, or to where thinking is ended by force. Returns: how many."""
        row, start = self.rows[number], len(self.rows[number].tokens)
        for place, token in enumerate(tokens):
            kept = self._forced(row, token)
            row.tokens.append(kept)
            row.steps.append(row.forwards.total() if steps is None else steps[place])
            row.ended = self._ends(row)
            if row.ended or kept != token:  # what follows was made for another token
                break
        if self.streamer is not None and len(row.tokens) > start:
            self.streamer(number, row.tokens[start:])
        return len(row.tokens) - start

    def _ends(self, row: Generation) -> bool:
        """Whether the newest token is the row's last one."""
        limits = self.limits
        if row.tokens[-1] in limits.eos_token_ids or len(row.tokens) == limits.max_new_tokens:
            return True
        return limits.complete is not None and limits.complete(row.tokens)

    def _forced(self, row: Generation, token: int) -> int:
        """The token itself, or the end of thinking where the budget is spent."""
        place = self.forced_place(row)
        if self.limits.thinking is not None and place == len(row.tokens):
            token = self.limits.thinking.end_token_id
        row.thought |= self.limits.thinking is not None and token == self.limits.thinking.end_token_id
        return token

    def forced_place(self, row: Generation) -> int | None:
        """Where among the row's generated tokens its thinking must end; None: nowhere."""
        return None if self.limits.thinking is None or row.thought else self.limits.thinking.tokens

    def extend_each(self, tokens: Tensor) -> None:
        """Append one token [B] to every active row."""
        given = tokens.tolist()
        for number in self.active:
            self.extend(number, [given[number]])


def check_generation_request(config: Any, prompts: Sequence[Sequence[int]], limits: GenerationLimits) -> None:
    """Raises: InputError for prompts and limits that the model cannot serve."""
    context, new = config.max_position_embeddings, limits.max_new_tokens
    require_input(new > 0, f"max_new_tokens={new}", "1 or more", "raise max_new_tokens")
    for number, prompt in enumerate(prompts):
        require_input(len(prompt) > 0, f"prompt {number} is empty", "one token or more", "give a prompt")
        require_input(
            len(prompt) + new <= context,
            f"prompt {number} of {len(prompt)} tokens with max_new_tokens={new}",
            f"{context} positions together",
            "shorten the prompt or lower max_new_tokens",
        )
        beyond = max(prompt)
        require_input(
            beyond < config.vocab_size,
            f"prompt {number} with token id {beyond}",
            f"ids below {config.vocab_size}",
            "use the model's own tokenizer",
        )


def end_token_ids(ids: TokenIds) -> tuple[int, ...]:
    """The ids that end a text."""
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def thinking_budget(tokens: int | None, end_token_id: int | None) -> ThinkingBudget | None:
    """The budget of `max_thinking_tokens`. Raises: InputError where the token that ends thinking is not named."""
    if tokens is None:
        return None
    if end_token_id is None:
        raise InputError(
            f"max_thinking_tokens={tokens} without end_think_token_id", "both", "name the token that ends thinking"
        )
    return ThinkingBudget(tokens, end_token_id)


def check_whole_blocks(max_new_tokens: int, block_length: int) -> None:
    """Raises: InputError unless the new tokens are whole blocks."""
    require_input(block_length > 0, f"block_length={block_length}", "1 or more", "use the block size of training")
    require_input(
        max_new_tokens % block_length == 0,
        f"max_new_tokens={max_new_tokens} with block_length={block_length}",
        f"multiples of {block_length}",
        f"use {-(-max_new_tokens // block_length) * block_length}",
    )
