"""A micro-batch of the sampler: the steps of some trajectories, as blocks that are padded to the longest.

Letters: N blocks (steps of all trajectories), B tokens of the longest, F features of a position.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nld_train.trajectories.trajectory import StepExamples


@dataclass(frozen=True)
class TrajectoryRow:
    """A row of a sampler's run."""

    index: int  # its number in the run
    examples: StepExamples


@dataclass(frozen=True)
class SamplerBatch:
    """What the network is given and what it should say."""

    sample_indices: Tensor  # [rows] int64: the rows' numbers in the run
    features: Tensor  # [N, B, F] float32
    masked: Tensor  # [N, B] bool
    present: Tensor  # [N, B] bool: False where a shorter block is padded
    judged: Tensor  # [N, B] bool: where the loss counts
    labels: Tensor  # [N, B] bool

    def to(self, device: torch.device) -> "SamplerBatch":
        """The same batch on another device, asynchronously from pinned memory."""
        return SamplerBatch(*(vars(self)[one.name].to(device, non_blocking=True) for one in fields(self)))

    def pin_memory(self) -> "SamplerBatch":
        """The same batch in page-locked memory."""
        return SamplerBatch(*(vars(self)[one.name].pin_memory() for one in fields(self)))


def collate_trajectories(rows: Sequence[TrajectoryRow]) -> SamplerBatch:
    """All steps of all rows, in their order."""
    longest = max(row.examples.masked.shape[1] for row in rows)

    def joined(name: str) -> Tensor:
        parts = [vars(row.examples)[name] for row in rows]
        whole = parts[0].new_zeros(sum(map(len, parts)), longest, *parts[0].shape[2:])
        start = 0
        for part in parts:
            whole[start : start + len(part), : part.shape[1]] = part
            start += len(part)
        return whole

    lengths = torch.cat([torch.full((len(row.examples.masked), 1), row.examples.masked.shape[1]) for row in rows])
    return SamplerBatch(
        sample_indices=torch.tensor([row.index for row in rows]),
        features=joined("features"),
        masked=joined("masked"),
        present=torch.arange(longest) < lengths,
        judged=joined("judged"),
        labels=joined("labels"),
    )
