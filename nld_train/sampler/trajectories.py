"""Denoising trajectories of the model itself: what it says of a block of B masks at every step until the block is full.

Two policies [paper, appendix A]:

- confidence: every step commits the most confident place alone. The text that a block ends in stands before the next.
- hybrid: the first step commits all places whose prediction is the ground truth's token; then as confidence. The ground
  truth stands before every block, whatever the blocks before it ended in.

Ours: that the ground truth is looked at in the first step alone ("already agrees"); where it agrees nowhere, that step
commits the most confident place. Blocks are masks alone, as the speed of light's are, without a seed token.

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
from nld_train.sampler.features import SeenDistribution, committed_features, describe_distributions, position_features

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


@dataclass(frozen=True)
class StepExamples:
    """What the sampler is given of every step of a trajectory, and what it should say."""

    features: Tensor  # [S, B, F] float32
    masked: Tensor  # [S, B] bool: where the loss counts
    labels: Tensor  # [S, B] bool: the top-1 of the step is the final token; False where nothing is masked


@dataclass(frozen=True)
class Trajectory:
    """The way of one block. What is told of a step is told of its masked places alone, in their order."""

    final: Tensor  # [B] int32
    committed: Tensor  # [B] int16: the step that committed each place, from 0 on
    top: Tensor  # [M, 3] int32
    statistics: Tensor  # [M, 12] float16

    def step_masks(self) -> Tensor:
        """[S, B] bool: which places are masked when each step begins."""
        steps = torch.arange(int(self.committed.max()) + 1)
        return self.committed >= steps[:, None]

    def right_predictions(self) -> Tensor:
        """[M] bool, the labels: whether the top-1 of the step is the token that finally stands there."""
        return self.top[:, 0] == self.final.expand(self.step_masks().shape)[self.step_masks()]

    def step_examples(self, coordinates: Tensor) -> StepExamples:
        """The examples of all steps, with the compressed embeddings [V, P]."""
        masked = self.step_masks()
        features = committed_features(coordinates, self.final.long()).expand(len(masked), -1, -1).clone()
        features[masked] = position_features(coordinates, self.top.long(), self.statistics)
        labels = torch.zeros_like(masked)
        labels[masked] = self.right_predictions()
        return StepExamples(features, masked, labels)


def trajectory_walk(truth: State, advance: Advance) -> Walk[Trajectory]:
    """The way of a block. truth: its tokens, MASKED where none is known; with none at all the policy is confidence."""
    state = masked_block(len(truth))
    committed, kept, step = [0] * len(truth), [], 0
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
    the last: the sampler meets such blocks too."""
    found: list[list[Trajectory]] = [[] for _ in forwards.rows]

    def take(blocks: Sequence[OracleBlock], left: int) -> Going:
        walks = [(block, trajectory_walk(masked_block(length), advance)) for block in blocks]
        going = {}
        for block, trajectory in zip(blocks, run_walks(walks, forwards.predict_states), strict=True):
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
            walks.append((OracleBlock(row, past[row] + start), trajectory_walk(state, advance)))
    ways = iter(run_walks(walks, forwards.predict_states) if walks else [])
    return [[next(ways) for _ in places] for places in starts]
