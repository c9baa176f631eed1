"""The arithmetic of rows against the tables and the rule that it counts."""

import pytest

from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_table
from nld_train.row_arithmetic import CHUNK_LOGITS, CHUNK_MULTIPLE, chunk_width, count_visible_pairs

SHAPES = [(1, 1), (8, 4), (32, 8), (30, 8), (7, 16), (256, 16)]


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("noisy_causal", [False, True])
@pytest.mark.parametrize(("length", "size"), SHAPES)
def test_pairs_are_those_of_the_dense_table(length: int, size: int, dual: bool, noisy_causal: bool) -> None:
    table = visible_table(RowLayout(length, size, dual, noisy_causal))
    assert count_visible_pairs(length, size, dual, noisy_causal) == int(table.sum())


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize(("length", "size"), [shape for shape in SHAPES if shape[0] <= 32])
def test_pairs_are_those_of_the_rule(length: int, size: int, dual: bool) -> None:
    """Counted one by one by the words of the paper, without a tensor."""
    places = [("clean", i) for i in range(length)] + ([("noisy", i) for i in range(length)] if dual else [])

    def sees(query: tuple[str, int], key: tuple[str, int]) -> bool:
        (kind, i), (other, j) = query, key
        if kind == "clean":
            return other == "clean" and j <= i
        return j // size == i // size if other == "noisy" else j // size < i // size

    expected = sum(sees(query, key) for query in places for key in places)
    assert count_visible_pairs(length, size, dual) == expected


@pytest.mark.parametrize("rows", [0, 1, 37, 4096, 8192, CHUNK_LOGITS])
def test_a_chunk_holds_as_many_logits_as_allowed_and_never_none(rows: int) -> None:
    width = chunk_width(rows)
    assert width >= CHUNK_MULTIPLE and width % CHUNK_MULTIPLE == 0
    assert width == CHUNK_MULTIPLE or width * rows <= CHUNK_LOGITS < (width + CHUNK_MULTIPLE) * max(1, rows)
