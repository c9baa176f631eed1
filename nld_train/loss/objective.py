"""What divides the sums, decided here alone [paper eq. 5; eq. 4 through the weights of the batch]."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.types import DrafterTerms, LossTerms

KEPT = "drafts kept up to "  # followed by a place in the block, counted from 1; the figure is a share of the blocks
ACCEPTED = "accepted length"  # tokens that a round of drafting and verifying adds
# The same in expectation, were all drafts sampled at temperature 1: an estimate, for the verifier reads each place
# behind the drafts as they were made, in evaluations the greedy ones.
EXPECTED = "expected length"
DRAFTER_LOSS = "drafter loss"  # what drafter.loss names
PER_FORWARD = "tokens per forward"  # of such a round
ROUND_FORWARDS = 2  # one drafts, one verifies


def sum_loss_terms(terms: Sequence[LossTerms]) -> LossTerms:
    """The terms of several micro-batches or ranks, added up: scalars, as each of them has."""
    return LossTerms(
        ar_sum=torch.stack([term.ar_sum for term in terms]).sum(),
        diffusion_sum=torch.stack([term.diffusion_sum for term in terms]).sum(),
        denominator=torch.stack([term.denominator for term in terms]).sum(),
        ar_weight=torch.stack([term.ar_weight for term in terms]).sum(),
        masked=torch.stack([term.masked for term in terms]).sum(),
        maskable=torch.stack([term.maskable for term in terms]).sum(),
    )


def loss_numerator(terms: LossTerms, alpha: float, ar_weight: float) -> Tensor:
    """What a micro-batch adds to the objective before the division by N. Scalar.

    ar_weight * ar_sum + alpha * diffusion_sum; ar_weight is 1 [paper eq. 5] but for comparison.
    """
    return ar_weight * terms.ar_sum + alpha * terms.diffusion_sum


def objective_value(terms: Sequence[LossTerms], alpha: float, ar_weight: float) -> Tensor:
    """(ar_weight * ar_sum + alpha * diffusion_sum) / N of the whole global batch: one denominator for both. Scalar."""
    whole = sum_loss_terms(terms)
    return _per(loss_numerator(whole, alpha, ar_weight), whole.denominator)


def reported_pairs(terms: LossTerms, alpha: float, ar_weight: float) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, count) of every figure that is shown of a step, scalars []. Both add up over micro-batches and ranks.

    Losses are in nats per supervised token; under sequence averaging they are the mean of the rows' means. The AR loss
    is the mean of its terms, which a document mask makes fewer than the supervised tokens. The diffusion loss is the
    ELBO, which can be compared across runs whatever alpha is.
    """
    return {
        "AR loss": (terms.ar_sum, terms.ar_weight),
        "diffusion loss": (terms.diffusion_sum, terms.denominator),
        "total loss": (loss_numerator(terms, alpha, ar_weight), terms.denominator),
        "mask ratio": (terms.masked, terms.maskable),
    }


def reported_figures(terms: LossTerms, alpha: float, ar_weight: float) -> dict[str, Tensor]:
    """The figures themselves, from the terms summed over the global batch: scalars [], left on their device."""
    return {name: _per(*pair) for name, pair in reported_pairs(terms, alpha, ar_weight).items()}


def drafter_numerator(terms: DrafterTerms) -> Tensor:
    """What a micro-batch adds to the drafter's objective before the division by the blocks of the global batch.
    Scalar."""
    return terms.loss_sum


def drafter_pairs(terms: DrafterTerms) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, count) of every figure that is shown of a drafter's step, scalars []. All figures are means over blocks.

    Whatever the loss is, the same are shown: hybrid and argmax loss are the two terms of the paper's.
    """
    return {
        DRAFTER_LOSS: (drafter_numerator(terms), terms.blocks),
        "hybrid loss": (terms.hybrid_sum, terms.blocks),
        "argmax loss": (terms.argmax_sum, terms.blocks),
        "overlap": (terms.overlap_sum, terms.blocks),
        EXPECTED: (terms.expected_sum + terms.blocks, terms.blocks),
        **acceptance_pairs(terms.kept_by_place, terms.blocks),
    }


def acceptance_pairs(kept_by_place: Tensor, blocks: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, count) of what is shown of the drafts of so many blocks [], from those kept up to each place [n].

    The accepted length counts the verifier's own token behind the accepted drafts too: so many tokens are added by two
    forwards, one that drafts and one that verifies.
    """
    kept = {f"{KEPT}{place}": (count, blocks) for place, count in enumerate(kept_by_place.unbind(), start=1)}
    return {ACCEPTED: (kept_by_place.sum() + blocks, blocks), **kept}


def decoding_figures(kept_by_place: Tensor, blocks: Tensor) -> dict[str, Tensor]:
    """The figures of greedy linear self-speculation on so many blocks [], at least one: scalars [].

    Tokens per forward: the accepted length over the two forwards of a round. The prefill is not counted.
    """
    found = {name: _per(*pair) for name, pair in acceptance_pairs(kept_by_place, blocks).items()}
    return {
        ACCEPTED: found.pop(ACCEPTED),
        PER_FORWARD: (kept_by_place.sum() + blocks) / blocks / ROUND_FORWARDS,
        **found,
    }


def _per(total: Tensor, count: Tensor) -> Tensor:
    """total / count, scalars."""
    # Where a count is 0, because nothing is supervised, its sum is 0 too: 0 / 1 is no NaN.
    return total / torch.where(count > 0, count, 1.0)
