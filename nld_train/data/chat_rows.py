"""Rows of whole conversations by global sample index: a blend of chat files, shuffled anew in every epoch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nld_train.data.chat_packing import epoch_permutation
from nld_train.data.packing import PackedRows
from nld_train.data.supervision import Supervision
from nld_train.data.token_file import TokenFile

PADDING_TOKEN = 0  # any id would do: nobody sees it and it is no target

Sample = dict[str, NDArray]


class ChatFileRows:
    """The rows of one split of a chat file."""

    def __init__(self, prefix: str, rows: PackedRows, length: int) -> None:
        self.tokens, self.supervision = TokenFile(prefix), Supervision(prefix)
        self.rows, self.length = rows, length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Sample:
        """tokens [L + 1] int64, supervised [L + 1] bool, document_lengths.

        Conversations fill the row from its start; what is left, at least the token behind the row that the last one
        predicts, is padding: a document of its own in which nothing is supervised.
        """
        documents = [int(document) for document in self.rows[row]]
        tokens = np.full(self.length + 1, PADDING_TOKEN, np.int64)
        supervised = np.zeros(self.length + 1, np.bool_)
        lengths, end = [], 0
        for document in documents:
            found = self.tokens[document][: self.length]  # a longer conversation was cut
            start, end = end, end + found.size
            tokens[start:end] = found
            supervised[start:end] = self.supervision.of(document)[: self.length]
            lengths.append(found.size)
        return {
            "tokens": tokens,
            "supervised": supervised,
            "document_lengths": np.array([*lengths, self.length + 1 - end]),
        }


class ChatRows:
    """Rows 0 .. count - 1 of the run. Which row of which file a number means does not depend on `count`.

    `weights`: share of the rows that each file gives; None: every file once per epoch of the whole.
    """

    def __init__(
        self, files: Sequence[ChatFileRows], weights: Sequence[float] | None, shuffle_seed: int, count: int
    ) -> None:
        assert all(len(file) for file in files), "a file without rows: open_plans refuses it"
        self.files, self.shuffle_seed = files, shuffle_seed
        self.file_of, self.place_of = blend_samples(weights or [len(file) for file in files], count)
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}  # by file: the epoch that was last read, its order

    def __len__(self) -> int:
        return len(self.file_of)

    def __getitem__(self, index: int) -> Sample:
        number = int(self.file_of[index])
        file = self.files[number]
        epoch, place = divmod(int(self.place_of[index]), len(file))
        return file[int(self._order(number, epoch)[place])]

    def _order(self, number: int, epoch: int) -> NDArray[np.int64]:
        """In which order an epoch takes a file's rows; kept, because the next rows are of the same epoch."""
        known = self._orders.get(number)
        if known is None or known[0] != epoch:
            known = epoch, epoch_permutation(self.shuffle_seed, epoch, len(self.files[number]))
            self._orders[number] = known
        return known[1]


def blend_samples(weights: Sequence[float], count: int) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """For sample 0 .. count - 1: the file it comes from, and how many samples that file gave before.

    Sample k of a file is due at time (k + 1/2) / its share of the weights; samples come in the order they are due. So
    after any number of samples every file has given its share, but for rounding, and one more sample changes no other.
    """
    shares = np.array(weights, np.float64) / np.sum(weights)
    enough = np.ceil(count * shares).astype(np.int64) + len(shares) + 1
    places = np.concatenate([np.arange(number) for number in enough])
    files = np.repeat(np.arange(len(shares), dtype=np.int16), enough)
    first = np.argsort((places + 0.5) / shares[files], kind="stable")[:count]
    return files[first], places[first]
