"""One micro-batch: what Megatron's loop calls. It does not know what is trained; the run's objective does."""

from collections.abc import Callable, Iterator

import torch
from megatron.bridge.training.state import GlobalState
from megatron.core.models.gpt import GPTModel
from megatron.core.utils import unwrap_model
from torch import Tensor

from nld_train.loss.vocabulary import VocabularyShard
from nld_train.model.drafter_adapter import verifier_mode
from nld_train.model.position_head import vocabulary_shard
from nld_train.objectives.contract import MicroBatch, Objective
from nld_train.types import Batch, HeadRequest


class MegatronForwards:
    """The forwards that an objective may ask for (`objectives.contract.ModelForwards`), run by Megatron's model."""

    def __init__(self, model: GPTModel) -> None:
        self.model = model

    @property
    def training(self) -> bool:
        """Whether the model is in its training mode."""
        return self.model.training

    def vocabulary_shard(self) -> VocabularyShard:
        """Which columns of the vocabulary the head of this rank gives."""
        return vocabulary_shard(unwrap_model(self.model).output_layer)

    def position_nll(self, batch: Batch) -> Tensor:
        """Cross-entropy [R_ar + R_diff] of the batch; hidden states [S, B, E] before the last pipeline stage."""
        return self.model(batch=batch)

    def position_logits(self, request: HeadRequest) -> Tensor:
        """Logits [R, V / ranks] of the requested positions."""
        return self.model(batch=request)

    def judge_blocks(self, features: Tensor, masked: Tensor, present: Tensor) -> Tensor:
        """Logits [N, B] of the sampler's network."""
        return self.model(features, masked, present)

    def base_causal_logits(self, request: HeadRequest) -> Tensor:
        """Logits [R, V / ranks] of the model without its adapter, the noisy half read left to right; no gradients."""
        with verifier_mode(self.model):
            return self.model(batch=request)


class ObjectiveStep:
    """Megatron-Bridge's forward step for a run with this objective."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(
        self, state: GlobalState, data_iterator: Iterator[MicroBatch], model: GPTModel
    ) -> tuple[Tensor, Callable]:
        """The model's output for the next micro-batch, and the function that turns it into the loss."""
        batch = next(data_iterator).to(torch.cuda.current_device())
        return self.objective.forward_loss(MegatronForwards(model), batch)
