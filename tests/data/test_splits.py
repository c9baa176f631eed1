"""Which documents train and which validate."""

import pytest

from nld_train.data.splits import epoch_permutation, part_counts, split_documents
from nld_train.errors import UserError
from nld_train.setting_ranges import split_shares


@pytest.mark.parametrize("split", ["99,1", "99,1,0,0", "0,1,0", "a,b,c", "99,-1,0", ""])
def test_a_split_that_is_none_is_refused(split: str) -> None:
    with pytest.raises(UserError, match="three numbers"):
        split_shares(split)


@pytest.mark.parametrize(
    ("count", "split", "trained", "validated"),
    [
        (1000, "99,1,0", 990, 10),
        (200, "80,15,5", 160, 30),
        (40, "99,1,0", 39, 1),
        (2, "99,1,0", 1, 1),
        (10, "1,99,0", 1, 9),
        (40, "98,1,1", 39, 1),
        (1, "99,1,0", 1, 0),
        (40, "100,0,0", 40, 0),
        (0, "99,1,0", 0, 0),
    ],
)
def test_a_small_file_has_documents_for_both_parts(count: int, split: str, trained: int, validated: int) -> None:
    assert part_counts(count, split) == {"train": trained, "validation": validated}
    parts = split_documents(count, split)
    assert (len(parts["train"]), len(parts["validation"])) == (trained, validated)
    assert not set(parts["train"].tolist()) & set(parts["validation"].tolist())


def test_validation_is_drawn_from_all_of_a_file_and_always_the_same() -> None:
    numbers = split_documents(1000, "95,5,0")["validation"].tolist()
    assert numbers == sorted(set(numbers))
    assert all(any(start <= number < start + 250 for number in numbers) for start in range(0, 1000, 250))
    assert numbers == split_documents(1000, "95,5,0")["validation"].tolist()


def test_a_shuffle_belongs_to_its_seed_its_epoch_and_its_purpose() -> None:
    orders = [epoch_permutation(*of).tolist() for of in ((1, 0, 50, 0), (2, 0, 50, 0), (1, 1, 50, 0), (1, 0, 50, 1))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert orders[0] == epoch_permutation(1, 0, 50).tolist()
