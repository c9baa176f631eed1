"""What a few seeds can say of a difference: Student's t of the differences seed by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

SAME, OPPOSITE, UNSEEN = "same direction", "opposite direction", "not seen"
LEVEL, POWER = 0.05, 0.8  # two-sided; the chance to see an effect of the size named as detectable


@dataclass(frozen=True)
class MeanError:
    """A mean over seeds with its standard error."""

    mean: float
    error: float | None  # None: of one seed

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.error is None else f"{self.mean:.4f} ± {self.error:.4f}"


@dataclass(frozen=True)
class PairedDifference:
    """A claim's difference over seeds: positive where the claim holds."""

    difference: MeanError
    verdict: str  # SAME, OPPOSITE or UNSEEN
    detectable: float | None  # the smallest difference that this error would show with a chance of POWER


def mean_and_error(values: Sequence[float]) -> MeanError:
    """The mean, and the standard deviation of one seed / sqrt(seeds)."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return MeanError(fmean(values), error)


def paired_difference(better: Sequence[float], worse: Sequence[float], higher_is_better: bool) -> PairedDifference:
    """Compare two arms seed by seed: they share rows and starting weights, so what a seed does to both cancels.

    1. d_s = better_s - worse_s, with the sign turned where lower is better; its mean and error e over n seeds.
    2. A direction is seen where |mean| > t(0.975, n - 1) * e.
    3. detectable = (t(0.975, n - 1) + t(0.8, n - 1)) * e, the usual approximation of a power of 80 %.
    """
    from scipy.stats import t

    assert len(better) == len(worse) > 0, f"{len(better)} and {len(worse)} seeds"
    sign = 1.0 if higher_is_better else -1.0
    found = mean_and_error([sign * (one - other) for one, other in zip(better, worse, strict=True)])
    if found.error is None:
        return PairedDifference(found, UNSEEN, None)
    degrees = len(better) - 1
    bound = float(t.ppf(1 - LEVEL / 2, degrees)) * found.error
    verdict = UNSEEN if abs(found.mean) <= bound else SAME if found.mean > 0 else OPPOSITE
    return PairedDifference(found, verdict, bound + float(t.ppf(POWER, degrees)) * found.error)
