"""The way of one block from its seed token and masks to text, as it is stored, and the examples that it gives.

Letters: B tokens of a block, S its steps, M its masked places, of all steps together, F features of a position.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.hf.sampler_features_nemotron_labs_diffusion import committed_features, position_features

SEED = -1  # the step that committed a block's first token: before all others


@dataclass(frozen=True)
class StepExamples:
    """What the sampler is given of every step of a trajectory, and what it should say."""

    features: Tensor  # [S, B, F] float32
    masked: Tensor  # [S, B] bool
    judged: Tensor  # [S, B] bool: where the loss counts, the masked places that do not stand behind the text's end
    labels: Tensor  # [S, B] bool: the top-1 of the step is the final token; False where nothing is masked


@dataclass(frozen=True)
class Trajectory:
    """The way of one block. What is told of a step is told of its masked places alone, in their order."""

    final: Tensor  # [B] int32
    committed: Tensor  # [B] int16: the step that committed each place, from 0 on; SEED of the first
    top: Tensor  # [M, 3] int32
    statistics: Tensor  # [M, 12] float16

    def step_masks(self) -> Tensor:
        """[S, B] bool: which places are masked when each step begins."""
        steps = torch.arange(int(self.committed.max()) + 1)
        return self.committed >= steps[:, None]

    def right_predictions(self) -> Tensor:
        """[M] bool, the labels: whether the top-1 of the step is the token that finally stands there."""
        return self.top[:, 0] == self.final.expand(self.step_masks().shape)[self.step_masks()]

    def step_examples(self, coordinates: Tensor, ends: Sequence[int]) -> StepExamples:
        """The examples of all steps, with the compressed embeddings [V, P]. ends: the ids that end a text; what stands
        behind the first of them in the end is read by nobody, and says nothing of what is right."""
        masked = self.step_masks()
        features = committed_features(coordinates, self.final.long()).expand(len(masked), -1, -1).clone()
        features[masked] = position_features(coordinates, self.top.long(), self.statistics)
        labels = torch.zeros_like(masked)
        labels[masked] = self.right_predictions()
        ended = torch.isin(self.final, torch.tensor(ends, dtype=self.final.dtype)).long()
        return StepExamples(features, masked, masked & (ended.cumsum(0) - ended == 0), labels)
