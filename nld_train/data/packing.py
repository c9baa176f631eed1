"""Packing: whole documents into rows of a fixed number of tokens, as few rows as best-fit decreasing needs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PackedRows:
    """Which documents lie in which row. Row r holds documents[starts[r] : starts[r + 1]], by ascending number."""

    documents: NDArray[np.int64]  # [documents] numbers, row by row
    starts: NDArray[np.int64]  # [rows + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> NDArray[np.int64]:
        return self.documents[self.starts[row] : self.starts[row + 1]]


def pack_documents(lengths: NDArray[np.integer], capacity: int) -> PackedRows:
    """Rows of at most `capacity` tokens for documents of `lengths` [n] tokens, each between 1 and `capacity`.

    Best-fit decreasing: the documents, longest first, each go into the row with the least room that still takes them.
    A row that was chosen has less room afterwards, so it is chosen again while it takes documents of that length; and
    rows of equal room are alike. So all documents of one length are handed out together, and 10 million take seconds.
    """
    lengths = np.asarray(lengths, np.int64)
    assert lengths.size == 0 or 0 < lengths.min() <= lengths.max() <= capacity, f"lengths must lie in 1..{capacity}"
    row_of = np.empty(lengths.size, np.int64)
    rooms = RowsByRoom(capacity)
    longest_first = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    start = 0
    for length, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        rooms.place(longest_first[start : start + count], length, row_of)
        start += count
    starts = np.zeros(rooms.rows + 1, np.int64)
    np.cumsum(np.bincount(row_of, minlength=rooms.rows), out=starts[1:])
    return PackedRows(np.argsort(row_of, kind="stable"), starts)


class RowsByRoom:
    """Rows by the room they have left. Bit r of `occupied` says whether any row has room r."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows = 0
        self.by_room: dict[int, list[NDArray[np.int64]]] = {}
        self.occupied = 0

    def place(self, documents: NDArray[np.int64], length: int, row_of: NDArray[np.int64]) -> None:
        """Give every document, all of one length, a row: written into `row_of`."""
        while documents.size:
            rows, room = self.tightest(length, documents.size)
            each = room // length
            chosen, spared = np.split(rows, [-(-documents.size // each)])
            placed = min(documents.size, chosen.size * each)
            row_of[documents[:placed]] = np.repeat(chosen, each)[:placed]
            rest = chosen.size * each - placed  # places of the last row that stay free
            if rest:
                chosen, last = np.split(chosen, [-1])
                self.put(last, room - (each - rest) * length)
            self.put(chosen, room - each * length)
            self.put(spared, room)
            documents = documents[placed:]

    def tightest(self, length: int, documents: int) -> tuple[NDArray[np.int64], int]:
        """The rows with the least room of at least `length`, taken out, and that room; new rows where none has it."""
        fitting = self.occupied >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            self.occupied ^= 1 << room
            return np.concatenate(self.by_room.pop(room)), room
        new = np.arange(self.rows, self.rows - (-documents // (self.capacity // length)))
        self.rows += new.size
        return new, self.capacity

    def put(self, rows: NDArray[np.int64], room: int) -> None:
        if rows.size and room:
            self.by_room.setdefault(room, []).append(rows)
            self.occupied |= 1 << room


def fill_rate(tokens: int, rows: int, capacity: int) -> float:
    """Share of the rows' places that hold a token of a document."""
    return tokens / (rows * capacity) if rows else 0.0


def ragged_share(lengths: NDArray[np.integer], block_size: int) -> float:
    """Share of the diffusion blocks' places that the documents' last, shorter blocks leave empty.

    No token is spent on them: blocks start again at every document. Padding each document to whole blocks would cost
    this share of all tokens.
    """
    lengths = np.asarray(lengths, np.int64)
    places = int((-(-lengths // block_size) * block_size).sum())
    return 1.0 - int(lengths.sum()) / places if places else 0.0
