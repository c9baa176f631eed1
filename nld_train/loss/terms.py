"""The two losses of a micro-batch, as weighted sums and counts; nothing is divided here."""

import torch
from torch import Tensor

from nld_train.types import Batch, LossTerms


def loss_terms(ar_nll: Tensor, diffusion_nll: Tensor, batch: Batch) -> LossTerms:
    """Weighted sums of the cross-entropies, which are in nats and in the order of the batch's positions.

    ar_nll [R_ar]: clean position i predicts x_{i+1}; diffusion_nll [R_diff]: noisy position i predicts x_i.
    Returns: scalars [].
    """
    return LossTerms(
        ar_sum=_weighted(ar_nll, batch.ar_weights),
        diffusion_sum=_weighted(diffusion_nll, batch.diffusion_weights),
        denominator=batch.denominator,
        ar_weight=batch.ar_weights.sum(),
        masked=torch.full_like(batch.denominator, batch.diffusion_positions.numel()),
        maskable=batch.maskable,
    )


def _weighted(nll: Tensor, weights: Tensor) -> Tensor:
    """SUM_r weights_r * nll_r of [R] each. Scalar."""
    assert nll.shape == weights.shape, f"{tuple(nll.shape)} losses for {tuple(weights.shape)} weights"
    return (nll * weights).sum()
