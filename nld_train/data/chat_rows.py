"""Rows of whole conversations, shuffled anew in every epoch."""

import numpy as np
from numpy.typing import NDArray

from nld_train.data.blended_rows import Sample
from nld_train.data.packing import PackedRows
from nld_train.data.splits import ROW_ORDER, epoch_permutation
from nld_train.data.supervision import Supervision
from nld_train.data.token_file import TokenFile

PADDING_TOKEN = 0  # any id would do: nobody sees it and it is no target


class ChatFileRows:
    """The rows of one split of a chat file."""

    def __init__(self, prefix: str, rows: PackedRows, length: int, shuffle_seed: int) -> None:
        self.tokens, self.supervision = TokenFile(prefix), Supervision(prefix)
        self.rows, self.length, self.shuffle_seed = rows, length, shuffle_seed
        self._order: tuple[int, NDArray[np.int64]] | None = None  # the epoch that was last read, and its order

    def __len__(self) -> int:
        return len(self.rows)

    def epoch_row(self, epoch: int, place: int) -> Sample:
        """The row at `place` of an epoch."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_permutation(self.shuffle_seed, epoch, len(self), ROW_ORDER)
        return self[int(self._order[1][place])]

    def prepare_epochs(self, epochs: range) -> None:
        """Nothing is kept: conversations make few enough rows to shuffle them anew."""

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
