"""Which row of which file a number means."""

import numpy as np
import pytest

from nld_train.data.blended_rows import CHUNK, BlendedRows, blend_samples, samples_given

WEIGHTS = [(1.0,), (0.7, 0.3), (5.0, 3.0, 2.0), (1.0, 1000.0), (0.1, 0.1, 0.1), tuple(range(1, 40))]


class Numbered:
    """Rows that say where they come from."""

    def __init__(self, name: int, rows: int) -> None:
        self.name, self.rows = name, rows
        self.prepared: list[int] = []

    def __len__(self) -> int:
        return self.rows

    def epoch_row(self, epoch: int, place: int) -> dict:
        return {"at": np.array([self.name, epoch, place])}

    def prepare_epochs(self, epochs: range) -> None:
        self.prepared += list(epochs)


def read(rows: BlendedRows) -> list[tuple[int, ...]]:
    return [tuple(rows[number]["at"].tolist()) for number in range(len(rows))]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_blend_keeps_its_shares_after_any_number_of_rows(weights) -> None:
    files, places = blend_samples(weights, 0, 2000)
    shares = np.array(weights) / sum(weights)
    for number in (1, 7, 100, 1999):
        given = np.bincount(files[:number], minlength=len(weights))
        assert np.abs(given - shares * number).max() <= len(weights) / 2 + 1
        assert samples_given(weights, number).tolist() == given.tolist()
    for file in range(len(weights)):
        assert places[files == file].tolist() == list(range((files == file).sum()))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_stretch_of_the_blend_is_that_stretch_of_the_whole(weights) -> None:
    whole = np.stack(blend_samples(weights, 0, 3000))
    for start, stop in ((0, 1), (5, 6), (999, 2001), (2990, 3000)):
        assert np.array_equal(np.stack(blend_samples(weights, start, stop)), whole[:, start:stop])


def test_far_into_a_run_the_stretches_still_meet() -> None:
    weights, far = (0.3, 0.7), 1 << 38
    one, two = (np.stack(blend_samples(weights, far + start, far + start + 100)) for start in (0, 50))
    assert np.array_equal(one[:, 50:], two[:, :50])


def test_a_number_means_the_same_row_in_a_longer_run() -> None:
    files = [Numbered(0, 7), Numbered(1, 11)]
    for weights in (None, (0.4, 0.6)):
        short, long = BlendedRows(files, weights, range(40)), BlendedRows(files, weights, range(3 * 40))
        assert read(long)[:40] == read(short)
        assert max(epoch for _, epoch, _ in read(short)) >= 2
        assert read(BlendedRows(files, weights, range(40, 120))) == read(long)[40:]


def test_rows_are_read_across_the_edge_of_a_chunk() -> None:
    rows = BlendedRows([Numbered(0, CHUNK - 3)], None, range(CHUNK - 5, CHUNK + 3))
    assert read(rows) == [(0, 0, CHUNK - 5), (0, 0, CHUNK - 4), *((0, 1, place) for place in range(6))]


def test_missing_weights_are_sizes() -> None:
    rows = read(BlendedRows([Numbered(0, 5), Numbered(1, 20)], None, range(50)))
    assert [sum(name == file for name, *_ in rows) for file in (0, 1)] == [10, 40]
    assert len(set(rows[:25])) == 25 and {epoch for _, epoch, _ in rows[:25]} == {0}


def test_the_epochs_that_are_read_are_prepared_and_no_other() -> None:
    files = [Numbered(0, 7), Numbered(1, 11), Numbered(2, 10**9)]
    rows = BlendedRows(files, (0.6, 0.3, 0.1), range(30, 80))
    rows.prepare_epochs()
    for file in files:
        assert file.prepared == sorted({epoch for name, epoch, _ in read(rows) if name == file.name})


def test_no_row_is_there_behind_the_last() -> None:
    rows = BlendedRows([Numbered(0, 7)], None, range(3))
    with pytest.raises(IndexError):
        rows[3]
