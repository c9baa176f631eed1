"""Denoising trajectories of the model itself: what it says of a block at every step until the block is full.

A block begins as block diffusion begins it: a seed token, then B - 1 masks. Two policies [paper, appendix A]:

- confidence: every step commits the most confident place alone. The seed is the causal forward's token behind the text
  so far; the text that a block ends in stands before the next.
- hybrid: the first step commits all places whose prediction is the ground truth's token; then as confidence. The seed
  is the ground truth's, which stands before every block, whatever the blocks before it ended in.

Ours: that the ground truth is looked at in the first step alone ("already agrees"); where it agrees nowhere, that step
commits the most confident place; and that blocks have a seed, as they have wherever the sampler is used.

Letters: B tokens of a block, S its steps, M its masked places, of all steps together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.evaluation.oracle_forwards import Going, OracleBlock, StateForwards, follow_blocks, run_walks
from nld_train.evaluation.oracle_walks import (
    MASKED,
    Prediction,
    State,
    Walk,
    commit_places,
    masked_block,
    ranked_matches,
    ranked_places,
)
from nld_train.hf.sampler_features_nemotron_labs_diffusion import SeenDistribution, describe_distributions
from nld_train.trajectories.trajectory import SEED, Trajectory

POSITIONS = 256  # whose distributions are described at a time: 128 MiB in float32 for 131,072 tokens, some times over
Advance = Callable[[int], None]  # called with so many tokens that are filled


@dataclass(frozen=True)
class SeenPrediction(Prediction):
    """A prediction, and what is kept of the distributions behind it."""

    seen: SeenDistribution  # top [B, 3] int32, statistics [B, 12] float16


class SeenForwards(StateForwards):
    """Forwards of states whose predictions say more."""

    def read_logits(self, logits: Tensor) -> list[list[Prediction]]:
        found = [describe_distributions(piece) for piece in logits.flatten(0, 2).split(POSITIONS)]
        top = torch.cat([seen.top for seen in found]).cpu().unflatten(0, logits.shape[:3])
        statistics = torch.cat([seen.statistics for seen in found]).cpu().unflatten(0, logits.shape[:3])
        small, half, tokens, confidence = (
            top.int(),
            statistics.half(),
            top[..., 0].tolist(),
            statistics[..., 0].tolist(),
        )
        rows, groups = logits.shape[:2]
        return [
            [
                SeenPrediction(
                    tokens[row][group], confidence[row][group], SeenDistribution(small[row, group], half[row, group])
                )
                for group in range(groups)
            ]
            for row in range(rows)
        ]


def trajectory_walk(seed: int, truth: State, advance: Advance) -> Walk[Trajectory]:
    """The way of a block behind its seed. truth: its tokens, MASKED where none is known; with none at all the policy is
    confidence."""
    state = (seed, *masked_block(len(truth) - 1))
    committed, kept, step = [SEED] + [0] * (len(truth) - 1), [], 0
    while MASKED in state:
        prediction = yield state
        assert isinstance(prediction, SeenPrediction), "the forwards of trajectories describe distributions"
        ranked = ranked_places(state, prediction)
        matches = ranked_matches(state, prediction, truth) if step == 0 else []
        masked = torch.tensor(sorted(ranked))
        kept.append((prediction.seen.top[masked], prediction.seen.statistics[masked]))
        for place in (chosen := matches or ranked[:1]):
            committed[place] = step
        state, step = commit_places(state, prediction, chosen), step + 1
    advance(len(truth))
    top, statistics = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return Trajectory(
        torch.tensor(state, dtype=torch.int32), torch.tensor(committed, dtype=torch.int16), top, statistics
    )


@dataclass(frozen=True)
class TextLimits:
    """Where a text ends."""

    max_new_tokens: int  # whole blocks
    eos_token_ids: tuple[int, ...]


def confidence_trajectories(
    forwards: StateForwards, length: int, limits: TextLimits, advance: Advance
) -> list[list[Trajectory]]:
    """Of every context, the trajectories of its blocks, one after the other. The block in which an id ends the text is
    the last: the sampler meets such blocks too. Where the seed itself ends it, there is no block."""
    found: list[list[Trajectory]] = [[] for _ in forwards.rows]

    def take(blocks: Sequence[OracleBlock], left: int) -> Going:
        seeds = {block.row: int(forwards.behind[forwards.rows.index(block.row)]) for block in blocks}
        begun = [block for block in blocks if seeds[block.row] not in limits.eos_token_ids]
        advance(length * left * (len(blocks) - len(begun)))
        walks = [(block, trajectory_walk(seeds[block.row], masked_block(length), advance)) for block in begun]
        going = {}
        for block, trajectory in zip(begun, run_walks(walks, forwards.predict_states) if walks else [], strict=True):
            found[block.row].append(trajectory)
            final = trajectory.final.tolist()
            if set(final).isdisjoint(limits.eos_token_ids):
                going[block.row] = final
            else:
                advance(length * (left - 1))
        return going

    follow_blocks(forwards, length, limits.max_new_tokens // length, take)
    return found


def hybrid_trajectories(
    forwards: StateForwards, truths: Sequence[Sequence[int]], length: int, advance: Advance
) -> list[list[Trajectory]]:
    """Of every context, the trajectories of the blocks that its ground truth reaches into, all at once: behind each
    stands the true text before it. At places behind the truth nothing is known."""
    starts = [range(0, len(truth), length) for truth in truths]
    past = [forwards.cache.lengths[row] for row in forwards.rows]
    width = max((places[-1] for places in starts if places), default=0)
    if width:
        text = torch.zeros(len(truths), width, dtype=torch.long)
        for row, truth in enumerate(truths):
            known = torch.tensor(truth[:width], dtype=torch.long)
            text[row, : len(known)] = known
        forwards.append_tokens(text)  # what pads a shorter truth stands behind every block of its row
    walks = []
    for row, truth in enumerate(truths):
        for start in starts[row]:
            here = tuple(truth[start : start + length])
            state = here + (MASKED,) * (length - len(here))
            walks.append((OracleBlock(row, past[row] + start), trajectory_walk(here[0], state, advance)))
    ways = iter(run_walks(walks, forwards.predict_states) if walks else [])
    return [[next(ways) for _ in places] for places in starts]
