"""The figures of `nld eval likelihood`, from its records alone.

Standard errors. Windows are the independent units of "standard_error": how far the figure would move with other
windows of the same data; of the bound it holds the noise too, for a window's value is the mean of its draws.
"noise_standard_error" is that of the draws alone, these windows given. Its independent units are, within a window,

    uniform         the draws;
    complementary   the pairs of draws, each the mean of its two;
    stratified      none: the draws share [0, 1) out. Neighbouring strata are compared instead, which never understates
                    the error on average (collapsed strata).

Either is null where a single unit shows no spread.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nld_train.errors import require
from nld_train.evaluation.record_file import Record

BITS = 1 / math.log(2)  # of a nat


def likelihood_figures(identity: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Nats per token and bits per byte of both measures, with standard errors; JSON values.

    Raises: UserError where there is no record.
    """
    require(len(records) > 0, "no window in which a token counts", "one or more", "give other --data")
    tokens, sizes = (np.array([record[name] for record in records], dtype=np.float64) for name in ("tokens", "bytes"))
    causal = np.array([record["ar_nats"] for record in records])
    bounds = np.array([record["bound_nats"] for record in records])
    levels = np.array([record["levels"] for record in records])
    noise = noise_deviation(identity["law"], bounds, levels)
    return {
        "kind": "likelihood",
        "identity": dict(identity),
        "windows": len(records),
        "tokens": int(tokens.sum()),
        "bytes": int(sizes.sum()),
        "ar": measure_figures(causal, tokens, sizes),
        "diffusion": {
            **measure_figures(bounds.mean(1), tokens, sizes),
            "draws": identity["draws"],
            "noise_standard_error": {
                "nats_per_token": _share(noise, tokens.sum(), 1),
                "bits_per_byte": _share(noise, sizes.sum(), BITS),
            },
        },
    }


def measure_figures(
    nats: NDArray[np.float64], tokens: NDArray[np.float64], sizes: NDArray[np.float64]
) -> dict[str, Any]:
    """Both figures of nats [windows], and their standard errors over the windows."""
    return {
        "nats_per_token": _share(float(nats.sum()), tokens.sum(), 1),
        "bits_per_byte": _share(float(nats.sum()), sizes.sum(), BITS),
        "standard_error": {
            "nats_per_token": _share(ratio_deviation(nats, tokens), tokens.sum(), 1),
            "bits_per_byte": _share(ratio_deviation(nats, sizes), sizes.sum(), BITS),
        },
    }


def ratio_deviation(nats: NDArray[np.float64], weights: NDArray[np.float64]) -> float | None:
    """Standard deviation of the sum of nats [windows] around the ratio of the sums, windows being independent."""
    count = len(nats)
    if count < 2 or weights.sum() == 0:
        return None
    left = nats - nats.sum() / weights.sum() * weights
    return math.sqrt(count / (count - 1) * float((left**2).sum()))


def noise_deviation(law: str, bounds: NDArray[np.float64], levels: NDArray[np.float64]) -> float | None:
    """Standard deviation, over the noise alone, of the sum over windows of the mean of bounds [windows, K]."""
    count = bounds.shape[1]
    if law == "stratified":
        ordered = np.take_along_axis(bounds, levels.argsort(1, kind="stable"), 1)
        return math.sqrt(float(((ordered[:, ::2] - ordered[:, 1::2]) ** 2).sum())) / count
    units = bounds.reshape(len(bounds), -1, 2).mean(2) if law == "complementary" else bounds
    groups = units.shape[1]
    return None if groups < 2 else math.sqrt(float(units.var(1, ddof=1).sum()) / groups)


def likelihood_table(figures: Mapping[str, Any]) -> str:
    """The figures as people read them."""
    ar, bound = figures["ar"], figures["diffusion"]
    noise = figures["identity"]["law"]
    rows = [("", "nats per token", "bits per byte")]
    for name, values in (
        ("AR", ar),
        ("  standard error", ar["standard_error"]),
        ("diffusion, at most", bound),
        ("  standard error", bound["standard_error"]),
        ("  of the noise alone", bound["noise_standard_error"]),
    ):
        cells = (values["nats_per_token"], values["bits_per_byte"])
        nats, bits = ("-" if value is None else f"{value:.4f}" for value in cells)
        rows.append((name, nats, bits))
    lines = [f"{name:22}{nats:>16}{bits:>16}" for name, nats, bits in rows]
    counted = f"{figures['windows']:,} windows, {figures['tokens']:,} tokens, {figures['bytes']:,} bytes"
    return "\n".join([f"{counted}; {bound['draws']} {noise} draws of noise a window", *lines])


def _share(amount: float | None, whole: float, factor: float) -> float | None:
    """factor * amount / whole; None where either is missing."""
    return None if amount is None or whole == 0 else float(factor * amount / whole)
