from dataclasses import dataclass

import pytest

from nld_train.errors import UserError
from nld_train.token_budget import DERIVED, derive_iterations


@dataclass(frozen=True)
class Train:
    """The two settings that `derive_iterations` reads of the train section."""

    tokens: float | None = None
    iterations: int = DERIVED


@pytest.mark.parametrize(
    ("tokens", "step_tokens", "iterations"),
    [
        (1e12, 512 * 4096, 476_837),  # the three published stages [paper sec. 5]
        (300e9, 512 * 4096, 143_051),
        (45e9, 256 * 16_384, 10_729),
        (14, 10, 1),
        (15, 10, 2),
        (5, 10, 1),
        (10**18 + 5, 10, 10**17 + 1),  # a float would have lost the 5
    ],
)
def test_iterations_are_the_nearest_whole_number(tokens, step_tokens, iterations) -> None:
    found = derive_iterations("train", Train(tokens), step_tokens)
    assert found == Train(int(tokens), iterations)
    assert type(found.tokens) is type(found.iterations) is int
    assert derive_iterations("train", found, step_tokens) == found


@pytest.mark.parametrize("tokens", [1.5, 0, -10, float("inf"), float("nan"), True, "300e9"])
def test_other_numbers_of_tokens_are_refused(tokens) -> None:
    with pytest.raises(UserError, match="whole numbers above 0, such as 300e9"):
        derive_iterations("train", Train(tokens), 10)


def test_iterations_that_are_given_stay() -> None:
    assert derive_iterations("train", Train(iterations=7), 10) == Train(iterations=7)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Train(), "neither train.tokens nor train.iterations"),
        (Train(iterations=-7), "train.iterations=-7"),
        (Train(4), "train.tokens=4; allowed: at least half the tokens of one iteration, which has 10"),
        (Train(100, 11), "these tokens make 10 iterations"),
    ],
)
def test_contradictions_are_refused(given, said) -> None:
    with pytest.raises(UserError, match=said):
        derive_iterations("train", given, 10)
