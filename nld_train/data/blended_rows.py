"""Rows of a run by number: which row of which file a number means.

It depends on the files, their weights and the shuffle seed, and on nothing else: not on how long a run is, how it is
cut over ranks, or where it was resumed.
"""

from collections.abc import Sequence
from functools import partial
from typing import NotRequired, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from nld_train.data.file_threads import call_in_threads
from nld_train.data.image_store import StoredImage

CHUNK = 1 << 16  # rows whose files are worked out together


class Sample(TypedDict):
    """A row as read."""

    tokens: NDArray[np.int64]  # [L + 1]
    supervised: NDArray[np.bool_]  # [L + 1]
    document_lengths: NDArray[np.int64]  # [documents of the row]
    clean_only: NotRequired[NDArray[np.bool_]]  # [L] tokens of images and of padding; without it: none
    images: NotRequired[tuple[StoredImage, ...]]  # in the order of their places; without it: none


class FileRows(Protocol):
    """The rows of one part of one file. An epoch takes each of them once, in an order of its own."""

    def __len__(self) -> int:
        """Rows of an epoch."""

    def epoch_row(self, epoch: int, place: int) -> Sample:
        """The row at `place` of an epoch."""

    def prepare_epochs(self, epochs: range) -> None:
        """Make what is kept of these epochs, where it is missing."""


class BlendedRows:
    """Some rows of a blend of files: those with the numbers `asked` in the blend, of which the first is row 0 here.

    `weights`: share of the rows that each file gives; None: in proportion to its rows, so that every file is taken
    whole once per epoch of the whole.
    """

    def __init__(self, files: Sequence[FileRows], weights: Sequence[float] | None, asked: range) -> None:
        assert all(len(file) for file in files), "a file without rows: it is refused where it is opened"
        self.files, self.asked = files, asked
        self.weights = list(weights or [len(file) for file in files])
        assert len(self.weights) == len(files), f"{len(self.weights)} weights for {len(files)} files"
        self._chunk: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None  # the one that was last read

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number, place = self.place_of(index)
        file = self.files[number]
        return file.epoch_row(*divmod(place, len(file)))

    def place_of(self, index: int) -> tuple[int, int]:
        """The file of row `index`, and how many rows of the blend that file gave before."""
        chunk, inside = divmod(self.asked[index], CHUNK)
        if self._chunk is None or self._chunk[0] != chunk:
            self._chunk = chunk, *blend_samples(self.weights, chunk * CHUNK, (chunk + 1) * CHUNK)
        _, files, places = self._chunk
        return int(files[inside]), int(places[inside])

    def prepare_epochs(self) -> None:
        """Make what is kept of the epochs that the rows come from, where it is missing."""
        epochs = epochs_read(self.weights, self.asked, [len(file) for file in self.files])
        call_in_threads(
            [
                partial(file.prepare_epochs, range(epoch, epoch + 1))
                for file, of_file in zip(self.files, epochs, strict=True)
                for epoch in of_file
            ]
        )


def blend_samples(weights: Sequence[float], start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For samples start .. stop - 1: the file each comes from, and how many samples that file gave before.

    Sample k of a file is due at time (k + 1/2) / its share of the weights; samples come in the order they are due, and
    at the same time in the order of the files. So after any number of samples every file has given its share, but for
    rounding; and the samples do not depend on how many are asked for.
    """
    firsts, files, places = _due_between(weights, start, stop)
    skipped = start - int(firsts.sum())
    return files[skipped : skipped + stop - start], places[skipped : skipped + stop - start]


def samples_given(weights: Sequence[float], count: int) -> NDArray[np.int64]:
    """How many of the first `count` samples each file gives: [files]."""
    firsts, files, _ = _due_between(weights, count, count)
    return firsts + np.bincount(files[: count - int(firsts.sum())], minlength=len(firsts))


def epochs_read(weights: Sequence[float], asked: range, rows: Sequence[int]) -> list[range]:
    """The epochs of each file that the samples `asked` come from. rows: of an epoch of each file."""
    before, behind = (samples_given(weights, end).tolist() for end in (asked.start, asked.stop))
    return [
        range(start // count, (stop - 1) // count + 1) if stop > start else range(0)
        for start, stop, count in zip(before, behind, rows, strict=True)
    ]


def _due_between(
    weights: Sequence[float], start: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Samples in the order they are due, from some before `start` to some behind `stop`: how many each file gave
    before the first of them [files], and the file and place of each [samples]."""
    shares = np.array(weights, np.float64) / np.sum(weights)
    # Until time t a file gives its share of t, rounded: all files together give t, but for half a sample each.
    margin = 2 * len(shares) + 2
    firsts = np.maximum(np.ceil((start - margin) * shares - 0.5), 0).astype(np.int64)
    behind = np.ceil((stop + margin) * shares + 0.5).astype(np.int64)
    places = np.concatenate([np.arange(low, high) for low, high in zip(firsts, behind, strict=True)])
    files = np.repeat(np.arange(len(shares)), behind - firsts)
    order = np.argsort((places + 0.5) / shares[files], kind="stable")
    return firsts, files[order], places[order]
