"""Predictions of many states of many blocks by one forward, over pasts that are never copied for it.

A row of the forward is a context. Its input is groups of B tokens one after the other, each a state of one of the
context's blocks. A group sees the places of the past that stand before its block, and itself in both directions, as if
it were alone; so states of all blocks of a context share the one past that holds the whole text.

Letters: R rows, G groups of a row, B tokens of a group, K keys, V vocabulary size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nld_train.evaluation.oracle_walks import MASKED, Prediction, State, Walk
from nld_train.hf.decoding_nemotron_labs_diffusion import extend_cache, prefill_prompts
from nld_train.hf.modeling_ministral import KVCache
from nld_train.hf.rows_nemotron_labs_diffusion import GenerationLimits, Generations

TOKENS = 4096  # of one forward; its logits are the most of its memory, 2 GiB in float32 for 131,072 tokens


@dataclass(eq=False)  # a block is itself alone: it is looked up by what it is, not by what it holds
class OracleBlock:
    """A block of a context, and what the model has said of its states so far."""

    row: int  # number of the context
    past: int  # how many places of the context's text stand before it
    predictions: dict[State, Prediction] = field(default_factory=dict)


Asked = tuple[OracleBlock, State]


class StateForwards:
    """The model over the texts of some contexts. `behind` [R]: the token that greedy AR puts behind each text.
    `used` and `given`: states asked for, and those that forwards held, padding among them."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.rows = model, list(range(len(prompts)))  # the context of every row of the cache
        self.cache, logits = prefill_prompts(model, Generations(prompts, GenerationLimits(1, (), None)))
        self.behind = self._behind_prompts = logits.argmax(-1)
        self._prompts = list(self.cache.lengths)
        self.used = self.given = 0

    def append_tokens(self, tokens: Tensor) -> None:
        """One causal forward of [R, n] tokens that join the text of every row."""
        self.behind = extend_cache(self.model, tokens, self.cache, keep=1)[:, -1].argmax(-1)

    def return_to_prompts(self) -> None:
        """Forget the texts behind the prompts of all rows."""
        assert len(self.rows) == len(self._prompts), "all rows are there"
        self.cache.crop(self._prompts)
        self.behind = self._behind_prompts

    def keep_rows(self, contexts: Sequence[int]) -> None:
        """Go on with these contexts alone."""
        places = torch.tensor([self.rows.index(context) for context in contexts], device=self.model.device)
        kept = KVCache(len(contexts))
        kept.lengths = [self.cache.lengths[place] for place in places.tolist()]
        kept.layers = [(keys[places], values[places]) for keys, values in self.cache.layers]
        self.cache, self.behind, self.rows = kept, self.behind[places], list(contexts)

    def predict_states(self, asked: Sequence[Asked]) -> list[Prediction]:
        """The predictions for states of blocks, all of one length, in their order."""
        length = len(asked[0][1])
        by_row: dict[int, list[int]] = {row: [] for row in self.rows}
        for number, (block, _) in enumerate(asked):
            by_row[block.row].append(number)
        groups = max(1, TOKENS // (len(self.rows) * length))
        found: dict[int, Prediction] = {}
        for first in range(0, max(map(len, by_row.values())), groups):
            places = [(row, numbers[first : first + groups]) for row, numbers in enumerate(by_row.values())]
            found |= self._forward(asked, places, length)
        return [found[number] for number in range(len(asked))]

    def _forward(
        self, asked: Sequence[Asked], places: Sequence[tuple[int, list[int]]], length: int
    ) -> dict[int, Prediction]:
        """One forward. places: of every row, the numbers of the states that it is given. Returns: their predictions."""
        groups = max(len(numbers) for _, numbers in places)
        ids = torch.full((len(places), groups, length), MASKED)
        past = torch.zeros(len(places), groups, dtype=torch.long)  # of a group of padding: nothing
        for row, numbers in places:
            for group, number in enumerate(numbers):
                block, state = asked[number]
                ids[row, group], past[row, group] = torch.tensor(state), block.past
        ids = ids.masked_fill(ids == MASKED, self.model.config.mask_token_id)
        said = self.read_logits(group_logits(self.model, self.cache, ids, past))
        self.used, self.given = self.used + sum(len(numbers) for _, numbers in places), self.given + past.numel()
        return {number: said[row][group] for row, numbers in places for group, number in enumerate(numbers)}

    def read_logits(self, logits: Tensor) -> list[list[Prediction]]:
        """The predictions [R][G] that logits [R, G, B, V] hold. Who wants to know more of them says so here."""
        tokens, confidence = predict_tokens(logits)
        return [
            [Prediction(*said) for said in zip(*row, strict=True)]
            for row in zip(tokens.tolist(), confidence.tolist(), strict=True)
        ]


def group_logits(model: Any, cache: KVCache, ids: Tensor, past: Tensor) -> Tensor:
    """Noisy logits [R, G, B, V] of groups ids [R, G, B], each behind the first `past` [R, G] places of its row.

    The cache stays as it is, and the mask itself is never predicted.
    """
    rows, groups, length = ids.shape
    positions = past[..., None] + torch.arange(length)
    logits = model(
        ids.flatten(1).to(model.device),
        attention_mask=visible_groups(cache.lengths, past, length)[:, None].to(model.device),
        position_ids=positions.flatten(1).to(model.device),
        past_key_values=cache,
        use_cache=False,
        use_causal_mask=False,
    ).logits
    logits[..., model.config.mask_token_id] = -torch.inf
    return logits.unflatten(1, (groups, length))


def visible_groups(lengths: Sequence[int], past: Tensor, length: int) -> Tensor:
    """Which keys the tokens of groups see: the first `past` [R, G] places of their row, and their own group.

    lengths: the places of every row that are cached. Returns: [R, G * B, K] bool with K = max(lengths) + G * B.
    """
    given = past.shape[1] * length
    key = torch.arange(max(lengths) + given)
    own = (key - torch.tensor(lengths)[:, None])[:, None]  # [R, 1, K]: 0 for the first key of this forward
    group = torch.arange(past.shape[1])[:, None]
    seen = (key < past[..., None]) | (own.div(length, rounding_mode="floor") == group)  # [R, G, K]
    return seen.repeat_interleave(length, 1)


def predict_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable token of every place and its probability, by the decoders' own arithmetic. [..., V] -> [...]"""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tokens = wide.argmax(-1)
    return tokens, wide.softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def run_walks[Result](
    walks: Sequence[tuple[OracleBlock, Walk[Result]]], predict: Callable[[Sequence[Asked]], Sequence[Prediction]]
) -> list[Result]:
    """Run walks to their ends, all at once. Returns: what they return.

    A state of a block is predicted once, whichever of its walks ask for it: to all of them the model is one function.
    """
    results: dict[int, Result] = {}
    waiting: dict[int, State] = {}

    def go_on(number: int, said: Prediction | None) -> None:
        """Take a walk on, None: from its start, until it asks for a state that is not predicted yet, or ends."""
        block, walk = walks[number]
        try:
            state = next(walk) if said is None else walk.send(said)
            while state in block.predictions:
                state = walk.send(block.predictions[state])
        except StopIteration as end:
            results[number] = end.value
        else:
            waiting[number] = state

    for number in range(len(walks)):
        go_on(number, None)
    while waiting:
        asked = list(dict.fromkeys((walks[number][0], state) for number, state in waiting.items()))
        for (block, state), prediction in zip(asked, predict(asked), strict=True):
            block.predictions[state] = prediction
        answered, waiting = waiting, {}
        for number, state in answered.items():
            go_on(number, walks[number][0].predictions[state])
    return [results[number] for number in range(len(walks))]


# Of the rows whose text goes on, the tokens [B] of the block that was filled.
Going = Mapping[int, Sequence[int]]


def follow_blocks(
    forwards: StateForwards, length: int, count: int, take: Callable[[Sequence[OracleBlock], int], Going]
) -> None:
    """Fill block after block of all contexts, at most `count` each: behind each stands what the one before became.

    take: fills the next blocks, one of every row whose text goes on, with the number of blocks left, these included.
    """
    rows: Iterable[int] = forwards.rows
    for left in range(count, 0, -1):
        going = take([OracleBlock(row, forwards.cache.lengths[row]) for row in rows], left)
        if not going:
            return
        rows = going
        if left > 1:
            text = torch.zeros(len(forwards.rows), length, dtype=torch.long)
            for row, tokens in going.items():
                text[row] = torch.tensor(tokens)
            forwards.append_tokens(text)
