"""Figures of likelihoods, from records made by hand."""

import math

import pytest

from nld_train.errors import UserError
from nld_train.evaluation.likelihood_figures import likelihood_figures

LN2 = math.log(2)


def record(tokens: int, size: int, nats: float, bounds: list[float], levels: list[float]) -> dict:
    return {"tokens": tokens, "bytes": size, "ar_nats": nats, "bound_nats": bounds, "levels": levels}


RECORDS = [
    record(4, 10, 8.0, [9.0, 13.0, 10.0, 12.0], [0.9, 0.1, 0.4, 0.6]),
    record(2, 4, 6.0, [7.0, 7.0, 9.0, 9.0], [0.1, 0.3, 0.6, 0.8]),
]


def figures(law: str, records=RECORDS) -> dict:
    return likelihood_figures({"law": law, "draws": 4}, records)


def test_sums_are_divided_by_tokens_and_by_bytes() -> None:
    found = figures("uniform")
    assert (found["windows"], found["tokens"], found["bytes"]) == (2, 6, 14)
    assert found["ar"]["nats_per_token"] == pytest.approx(14 / 6)
    assert found["ar"]["bits_per_byte"] == pytest.approx(14 / 14 / LN2)
    assert found["diffusion"]["nats_per_token"] == pytest.approx((11 + 8) / 6)
    assert found["diffusion"]["bits_per_byte"] == pytest.approx((11 + 8) / 14 / LN2)


def test_the_standard_error_over_windows_is_that_of_a_ratio() -> None:
    """Of two windows: each is off by 8 - 4 * 14/6 = -4/3 and 6 - 2 * 14/6 = 4/3 nats."""
    error = figures("uniform")["ar"]["standard_error"]["nats_per_token"]
    assert error == pytest.approx(math.sqrt(2 / 1 * 2 * (4 / 3) ** 2) / 6)
    assert figures("uniform", RECORDS[:1])["ar"]["standard_error"]["nats_per_token"] is None


@pytest.mark.parametrize(
    ("law", "variance"),
    [
        # Sample variances 10/3 and 4/3 of 4 draws each.
        ("uniform", (10 / 3 + 4 / 3) / 4),
        # Means of pairs: 11 and 11; 7 and 9.
        ("complementary", (0 + 2) / 2),
        # In the order of their levels 13, 10, 12, 9 and 7, 7, 9, 9: differences of neighbours 3, 3 and 0, 0.
        ("stratified", (3**2 + 3**2) / 4**2),
    ],
)
def test_the_error_of_the_noise_is_over_what_is_independent(law: str, variance: float) -> None:
    error = figures(law)["diffusion"]["noise_standard_error"]
    assert error["nats_per_token"] == pytest.approx(math.sqrt(variance) / 6)
    assert error["bits_per_byte"] == pytest.approx(math.sqrt(variance) / 14 / LN2)


def test_one_pair_shows_no_error_and_no_record_no_figure() -> None:
    short = [entry | {"bound_nats": entry["bound_nats"][:2], "levels": entry["levels"][:2]} for entry in RECORDS]
    assert figures("complementary", short)["diffusion"]["noise_standard_error"]["nats_per_token"] is None
    with pytest.raises(UserError, match="no window in which a token counts"):
        figures("uniform", [])
