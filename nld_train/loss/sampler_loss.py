"""The sampler's loss, and how well its scores rank and are calibrated: functions of logits and labels.

A score is a logit. Scores of a whole evaluation are kept as counts of BINS equal bins within -CAP..CAP, which add up
over micro-batches and ranks: two scores are told apart that lie more than 2 CAP / BINS = 0.01 from each other.

Letters: N blocks, B tokens of a block.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

BINS = 4096
CAP = 20.0
DECILES = 10  # bands of probability in which the report compares what was said with what was right


def judgement_loss(logits: Tensor, labels: Tensor, judged: Tensor) -> Tensor:
    """Binary cross-entropy [paper, appendix A] of the judged positions, summed: [] nats. All [N, B]."""
    each = binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return torch.where(judged, each, 0.0).sum()


def score_counts(scores: Tensor, labels: Tensor) -> Tensor:
    """How many scores lie in every bin, of labels False and of True: [2, BINS] float64. scores, labels: [M]."""
    bins = ((scores.double().clamp(-CAP, CAP) + CAP) / (2 * CAP) * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(labels.long() * BINS + bins, minlength=2 * BINS)
    return counts.view(2, BINS).double()


def area_under_roc(counts: Tensor) -> float:
    """The probability that a score of a True label is above one of a False label, half of it where they share a bin;
    NaN without one of each. counts: [2, BINS]."""
    wrong, right = counts
    below = wrong.cumsum(0) - wrong
    pairs = wrong.sum() * right.sum()
    return float((right * (below + wrong / 2)).sum() / pairs) if pairs else float("nan")


def calibration_bands(counts: Tensor) -> list[tuple[float, float, float]]:
    """Of every band of probability, in ascending order: how many scores lie in it, the mean probability that they say,
    and the share of them that is right; the latter two are NaN where there is none. counts: [2, BINS]."""
    centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS * 2 * CAP - CAP
    said = centres.sigmoid()
    band = (said * DECILES).long().clamp(max=DECILES - 1)
    total, right = counts.sum(0), counts[1]
    found = []
    for number in range(DECILES):
        inside = band == number
        count = float(total[inside].sum())
        mean, share = (
            float((each * inside).sum()) / count if count else float("nan") for each in (total * said, right)
        )
        found.append((count, mean, share))
    return found
