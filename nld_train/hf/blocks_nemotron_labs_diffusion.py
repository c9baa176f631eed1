"""The blocks that block diffusion fills, and which of their places it masks again. This file travels with every export.

Letters: B rows, n positions of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .configuration_nemotron_labs_diffusion import require_input
from .modeling_ministral import KVCache
from .rows_nemotron_labs_diffusion import Generations
from .sampling_nemotron_labs_diffusion import even_quota, most_confident
from .trained_sampler_nemotron_labs_diffusion import TrainedSampler

REVISED_SHARE = 4  # a round of revision masks one token in so many again, rounded up


@dataclass(frozen=True)
class DenoisingPlan:
    """How block diffusion fills its blocks. Raises: InputError where the settings do not go together."""

    block_length: int
    mask_token_id: int
    threshold: float | None  # commit every token with this probability, and the best; None: none for its probability
    forwards_per_block: int | None = None  # denoising forwards of a block at most; None: as many as it has masks
    revise: int = 0  # rounds of revision of a finished block at most
    causal_context: bool = True  # False: the past sees itself in both directions and gives no seed token
    sampler: TrainedSampler | None = None  # what it says of a place is the place's confidence; None: the probability

    def __post_init__(self) -> None:
        forwards, rounds = self.forwards_per_block, self.revise
        require_input(rounds >= 0, f"revise={rounds}", "0 or more", "correct it")
        require_input(
            forwards is None or forwards > rounds,
            f"forwards_per_block={forwards} with revise={rounds}",
            f"{rounds + 1} or more, one to fill a block and one for every round; or none",
            "raise forwards_per_block, or lower revise",
        )


def check_judged_greedily(temperature: float) -> None:
    """Raises: InputError for a temperature at which a trained sampler would judge other tokens than are drawn."""
    require_input(
        temperature == 0,
        f"a trained sampler at temperature={temperature}",
        "temperature=0: it judges the most probable token alone",
        "leave one of the two out",
    )


class DiffusionBlocks:
    """The blocks that the rows are filling, on the host. Tensors are [B, n] unless they say otherwise.

    Revision. When a block is finished, the least certain quarter (rounded up, of equals the leftmost) of the tokens
    that denoising committed is masked again and filled as before, by the same threshold; then the next round begins.
    A token is as certain as the forward that committed it found it, or as the trained sampler judged it then: that
    probability was predicted under a mask, as in training, where a forward that is shown the token has never been asked
    for it; and it costs no forward. What stood
    in the block from the start (the seed token, a forced end of thinking, the text behind a gap) is never masked, nor
    is what stands behind the first end of the text. A row revises until a round gives the tokens that were there, or
    its rounds are over. A new token is kept even if it is less certain than the old one.

    The budget. The plan's forwards are for filling and revising together: one for each round is kept back.
    """

    def __init__(self, plan: DenoisingPlan, ids: Tensor, given: Tensor, real: Tensor | None = None) -> None:
        """ids: int64, masks where not `given`. real: bool, False for padding on the right; None: there is none."""
        self.plan, self.ids, self.given, self.real = plan, ids, given, real
        self.masked = ~given
        self.steps = torch.zeros_like(ids)  # the row's forward that set each token last
        self.confidence = torch.zeros(ids.shape)  # that each token was committed with
        self.thinks_until = torch.zeros(len(ids), 1, dtype=torch.long)  # place of a forced end of thinking; 0: none
        # Of every row's newest round; the filling is the first, in which masks became tokens.
        self.again, self.before = self.masked.clone(), ids.clone()
        self.rounds_left = torch.full((len(ids), 1), plan.revise)

    def unfinished_rows(self, active: Sequence[int], eos_token_ids: Sequence[int]) -> list[int]:
        """The active rows that need a forward, after every finished one has begun the round that is due."""
        for row in active:
            if not self._is_open(row, eos_token_ids) and self.rounds_left[row] > 0 and self._has_changed(row):
                self._begin_round(row, eos_token_ids)
        return [row for row in active if self._is_open(row, eos_token_ids)]

    def _is_open(self, row: int, eos_token_ids: Sequence[int]) -> bool:
        """Whether a mask is left that matters: one with no end-of-sequence token to the left of it."""
        for token, masked in zip(self.ids[row].tolist(), self.masked[row].tolist(), strict=True):
            if masked:
                return True
            if token in eos_token_ids:
                return False
        return False

    def _has_changed(self, row: int) -> bool:
        """Whether the row's newest round gave another token than was there."""
        return bool((self.ids[row] != self.before[row])[self.again[row]].any())

    def _begin_round(self, row: int, eos_token_ids: Sequence[int]) -> None:
        """Mask the row's least certain tokens again."""
        ends = torch.isin(self.ids[row], torch.tensor(eos_token_ids, dtype=torch.long)).long()
        revisable = (ends.cumsum(0) - ends == 0) & ~self.masked[row] & ~self.given[row]
        count = (revisable.sum() + REVISED_SHARE - 1) // REVISED_SHARE
        again = most_confident(-self.confidence[row][None], revisable[None], count[None, None])[0]
        self.again[row], self.before[row] = again, self.ids[row]
        self.masked[row] |= again
        self.ids[row, again] = self.plan.mask_token_id
        self.rounds_left[row] -= 1

    def quota(self, waiting: Tensor, step: int) -> Tensor:
        """How many of the masks `waiting` each row must commit in forward number `step` of the block, counted from 0:
        [B, 1]. An even share, so that the budget suffices; at least one.
        """
        masks = waiting.sum(1, keepdim=True)
        if self.plan.forwards_per_block is None:
            return torch.ones_like(masks)
        return even_quota(masks, self.plan.forwards_per_block - step - self.rounds_left)

    def commit(self, places: Tensor, tokens: Tensor, confidence: Tensor, forwards: Tensor) -> None:
        """Set the tokens at `places`, with what is known of them. forwards: [B, 1], the number of each row's."""
        self.ids = torch.where(places, tokens, self.ids)
        self.confidence = torch.where(places, confidence, self.confidence)
        self.steps = torch.where(places, forwards, self.steps)
        self.masked = self.masked & ~places


def start_blocks(rows: Generations, cache: KVCache, plan: DenoisingPlan) -> DiffusionBlocks:
    """Blocks that begin with what the cache does not hold yet (the seed token), then masks.

    Where the thinking budget ends within a block, the end of thinking stands there from the start.
    """
    shape = (len(rows.rows), plan.block_length)
    ids, given = torch.full(shape, plan.mask_token_id), torch.zeros(shape, dtype=torch.bool)
    forced_ends: list[tuple[int, int]] = []
    for number in rows.active:
        row = rows[number]
        known = row.tokens[len(row.tokens) - uncached_count(rows, cache, number) :]
        ids[number, : len(known)] = torch.tensor(known, dtype=torch.long)
        given[number, : len(known)] = True
        forced = rows.forced_place(row)
        if rows.limits.thinking is not None and forced is not None:
            place = forced - len(row.tokens) + len(known)
            if len(known) <= place < plan.block_length:
                ids[number, place], given[number, place] = rows.limits.thinking.end_token_id, True
                forced_ends.append((number, place))
    block = DiffusionBlocks(plan, ids, given)
    for number, place in forced_ends:
        block.steps[number, place] = rows[number].forwards.total()
        block.thinks_until[number] = place
    return block


def uncached_count(rows: Generations, cache: KVCache, number: int) -> int:
    """Tokens of a row that its cache does not hold yet."""
    return rows[number].length - cache.lengths[number]
