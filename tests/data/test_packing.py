"""Best-fit decreasing against the same thing written plainly, and what it reaches."""

import time

import numpy as np
import pytest

from nld_train.data.packing import fill_rate, pack_documents, ragged_share


def plainly(lengths, capacity: int) -> list[int]:
    """Tokens of every row, sorted. Which of two rows of equal room is chosen changes what lies in them, not these."""
    rows: list[list[int]] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [row for row in rows if sum(row) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return sorted(sum(row) for row in rows)


def log_normal(count: int, capacity: int, seed: int = 0):
    """Lengths as chat sets have them: many short ones, few very long; median 500 tokens."""
    drawn = np.random.default_rng(seed).lognormal(np.log(500), 1.0, count)
    return np.clip(drawn, 8, capacity).astype(np.int64)


@pytest.mark.parametrize("seed", range(30))
def test_it_is_best_fit_decreasing(seed: int) -> None:
    draw = np.random.default_rng(seed)
    capacity = int(draw.integers(5, 60))
    lengths = draw.integers(1, capacity + 1, int(draw.integers(1, 300)))
    packed = pack_documents(lengths, capacity)
    assert sorted(int(lengths[packed[row]].sum()) for row in range(len(packed))) == plainly(lengths, capacity)


def test_every_document_is_in_one_row_and_no_row_overflows() -> None:
    lengths = log_normal(20_000, 4096)
    packed = pack_documents(lengths, 4096)
    assert np.array_equal(np.sort(packed.documents), np.arange(20_000))
    sums = np.add.reduceat(lengths[packed.documents], packed.starts[:-1])
    assert sums.max() <= 4096
    assert (np.diff(packed.starts) > 0).all()


def test_written_out() -> None:
    packed = pack_documents(np.array([3, 7, 3, 10, 2, 5]), 10)
    assert [packed[row].tolist() for row in range(len(packed))] == [[3], [0, 1], [2, 4, 5]]


@pytest.mark.parametrize("capacity", [4096, 16_384])
def test_rows_of_realistic_lengths_are_97_percent_full(capacity: int) -> None:
    lengths = log_normal(20_000, capacity)
    packed = pack_documents(lengths, capacity)
    assert fill_rate(int(lengths.sum()), len(packed), capacity) >= 0.97


def test_the_same_lengths_give_the_same_rows() -> None:
    lengths = log_normal(5000, 4096)
    one, other = pack_documents(lengths, 4096), pack_documents(lengths.astype(np.int32), 4096)
    assert np.array_equal(one.documents, other.documents) and np.array_equal(one.starts, other.starts)


def test_time_grows_like_the_number_of_documents() -> None:
    """A search through all rows for each document would take 100 times as long for 10 times as many."""

    def seconds(count: int) -> float:
        lengths = log_normal(count, 16_384)
        start = time.process_time()
        pack_documents(lengths, 16_384)
        return time.process_time() - start

    assert seconds(1_000_000) < 30 * max(seconds(100_000), 0.1)


def test_nothing_to_pack() -> None:
    assert len(pack_documents(np.array([], np.int64), 8)) == 0
    assert fill_rate(0, 0, 8) == 0.0 and ragged_share(np.array([], np.int64), 8) == 0.0


def test_a_document_longer_than_a_row_is_a_programmers_error() -> None:
    with pytest.raises(AssertionError, match=r"1\.\.8"):
        pack_documents(np.array([9]), 8)


def test_ragged_last_blocks_written_out() -> None:
    """Blocks of 4: a document of 5 leaves 3 of 8 places empty, one of 4 none."""
    assert ragged_share(np.array([5, 4]), 4) == pytest.approx(3 / 12)
