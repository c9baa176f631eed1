"""What a drafter can be trained to lower: a table of losses of a block, the paper's and three published since.

Each is a pure function of the terms of the drafted places, [N, n], and of how many drafts the verifier accepted, and
returns the sum over the blocks: nothing is divided by the batch here. Letters: N blocks; n drafted places of a block,
j = 1 .. n; k_j = 1 where the verifier's argmax at place j is among the candidates, and else 0.

Active are the places up to the first rejected draft of a block, that one included. The verifier has read the block as
it was drafted: what it says of a place behind the first rejected one is said behind tokens that decoding throws away.

Of the papers behind arXiv 2606.11552 and 2607.01893 we know what design notes tell of them, not their formulas: what
goes beyond that is marked as our reading.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from nld_train.objective_sections import DrafterConfig, DrafterLoss


@dataclass(frozen=True)
class PlaceTerms:
    """What is known of every drafted place, [N, n] each, and of every block. The gradient goes through q alone."""

    hybrid: Tensor  # lam * KL(p || q) + (1 - lam) * TV
    cross_entropy: Tensor  # of q on the verifier's argmax, nats; 0 where not `counted`
    counted: Tensor  # bool: k_j
    acceptance: Tensor  # a_j = SUM_u min(P_j(u), Q_j(u)) at temperature 1, which is 1 - TV
    accepted: Tensor  # [N] int64: how many drafts of the block stand before the first rejected one

    @property
    def active(self) -> Tensor:
        """Bool [N, n]: the accepted drafts and the first rejected one."""
        return self._places() <= self.accepted[:, None]

    def weights(self, drafter: DrafterConfig) -> Tensor:
        """w_j = place_decay^(j - 1), times first_error_weight at the first rejected place, [N, n] [2606.11552].

        Told of the paper: weights fall with the place, and the first error is stressed. Our reading: they fall
        geometrically, and the stress is a constant factor.
        """
        falling = drafter.place_decay ** self._places().to(self.hybrid.dtype)
        return torch.where(self._places() == self.accepted[:, None], drafter.first_error_weight * falling, falling)

    def _places(self) -> Tensor:
        """j - 1 of every place, [n] int64."""
        return torch.arange(self.hybrid.shape[1], device=self.hybrid.device)


LossOfBlocks = Callable[[PlaceTerms, DrafterConfig], Tensor]


def lk_hybrid_loss(terms: PlaceTerms, drafter: DrafterConfig) -> Tensor:
    """The paper's [sec. 3.3]: SUM_active w_j hybrid_j / SUM_active w_j + SUM_active w_j k_j CE_j / SUM_active w_j k_j.

    In the paper all weights are 1. Scalar.
    """
    weights = terms.weights(drafter) * terms.active
    return weighted_means(terms.hybrid, weights) + weighted_means(terms.cross_entropy, weights * terms.counted)


def first_failure_loss(terms: PlaceTerms, drafter: DrafterConfig) -> Tensor:
    """SUM_active w_j k_j CE_j / SUM_active w_j k_j: cross-entropy up to the drafter's own first failure [2607.01893].

    Our reading: a failure is a draft that the verifier rejects, by argmax or by chance as the block was drafted; and
    the mean over the places, not their sum, so that a block counts alike however far it came. Scalar.
    """
    return weighted_means(terms.cross_entropy, terms.weights(drafter) * terms.active * terms.counted)


def all_places_loss(terms: PlaceTerms, drafter: DrafterConfig) -> Tensor:
    """SUM_j w_j k_j CE_j / SUM_j w_j k_j over all drafted places: what weights by place and on the first error are
    published with [2606.11552]. Our reading: they weigh the cross-entropy on the verifier's argmax. Scalar."""
    return weighted_means(terms.cross_entropy, terms.weights(drafter) * terms.counted)


def accepted_length_loss(terms: PlaceTerms, drafter: DrafterConfig) -> Tensor:
    """n - SUM_j PROD_{i <= j} a_i over all drafted places: the drafts that speculative sampling is expected to lose, so
    that the expected accepted length is what grows [2606.11552]. Our reading: a_i at temperature 1 over the candidates.

    Scalar, in tokens. place_decay and first_error_weight must be 1: the product weighs the places.
    """
    return (terms.hybrid.shape[1] - expected_drafts(terms.acceptance)).sum()


LOSSES: Mapping[DrafterLoss, LossOfBlocks] = {
    "lk_hybrid": lk_hybrid_loss,
    "first_failure": first_failure_loss,
    "all_places": all_places_loss,
    "accepted_length": accepted_length_loss,
}


def expected_drafts(acceptance: Tensor) -> Tensor:
    """SUM_j PROD_{i <= j} a_i of acceptance [N, n]: how many drafts of each block are expected to stand, [N]."""
    # torch.cumprod would wait for the device in its backward, which looks for zeros.
    return torch.stack(list(accumulate(acceptance.unbind(1), torch.mul)), 1).sum(1)


def weighted_means(values: Tensor, weights: Tensor) -> Tensor:
    """SUM_j w_j v_j / SUM_j w_j of each block, [N, n] both, summed over the blocks. Scalar.

    A block without weight adds 0.
    """
    total = weights.sum(1)
    return ((values * weights).sum(1) / torch.where(total > 0, total, 1)).sum()
