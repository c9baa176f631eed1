"""One micro-batch: what Megatron's loop calls. It does not know what diffusion is; the batch and the heart do."""

from collections.abc import Iterator
from functools import partial

import torch
from megatron.bridge.training.state import GlobalState
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nld_train.loss.objective import loss_numerator, reported_pairs
from nld_train.loss.terms import loss_terms
from nld_train.types import Batch, LossTerms


class JointStep:
    """Megatron-Bridge's forward step for a run with this alpha."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, state: GlobalState, data_iterator: Iterator[Batch], model: GPTModel) -> tuple[Tensor, partial]:
        batch = next(data_iterator).to(torch.cuda.current_device())
        return model(batch=batch), partial(joint_loss_function, batch, self.alpha)


def joint_loss_function(batch: Batch, alpha: float, nll: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What Megatron sums over the global batch: the numerator, its count, and (sum, count) pairs to report.

    nll: [R_ar + R_diff] of the batch. With `calculate_per_token_loss` Megatron divides the summed gradient by the
    summed count: one denominator for both terms, over all micro-batches and ranks [paper eq. 5].
    """
    ar_nll, diffusion_nll = nll.split([batch.ar_targets.numel(), batch.diffusion_targets.numel()])
    sums = loss_terms(ar_nll, diffusion_nll, batch)
    return loss_numerator(sums, alpha), sums.denominator.int(), _stacked_pairs(sums, alpha)


def _stacked_pairs(sums: LossTerms, alpha: float) -> dict[str, Tensor]:
    """(sum, count) pairs [2] by name; Megatron adds them up over the global batch and divides."""
    shown = reported_pairs(sums, alpha)
    if alpha == 0:
        shown = {"AR loss": shown["AR loss"]}
    return {name: torch.stack(pair).detach() for name, pair in shown.items()}
