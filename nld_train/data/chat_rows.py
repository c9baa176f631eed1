"""Rows of whole conversations, shuffled anew in every epoch."""

import numpy as np
from numpy.typing import NDArray

from nld_train.config import DataConfig
from nld_train.data.blended_rows import Sample
from nld_train.data.image_store import StoredImage, StoredImages
from nld_train.data.manifest import read_manifest
from nld_train.data.packing import PackedRows
from nld_train.data.splits import ROW_ORDER, epoch_permutation
from nld_train.data.supervision import Supervision
from nld_train.data.token_file import TokenFile
from nld_train.row_arithmetic import PADDING_TOKEN


class ChatFileRows:
    """The rows of one split of a chat file."""

    def __init__(self, prefix: str, rows: PackedRows, data: DataConfig) -> None:
        self.tokens, self.supervision = TokenFile(prefix), Supervision(prefix)
        self.rows, self.length, self.shuffle_seed = rows, data.sequence_length, data.shuffle_seed
        self.text_length = data.noisy_length
        chat = read_manifest(prefix).chat
        self.images = None if chat is None or chat.images is None else StoredImages(prefix, chat.images)
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
        """A row of whole conversations.

        They fill the row from its start; what is left, at least the token behind the row that the last one predicts, is
        padding: a document of its own in which nothing is supervised. Where the file has images, or rows have fewer
        places for text than for tokens, padding and images stand in the clean half alone.
        """
        tokens = np.full(self.length + 1, PADDING_TOKEN, np.int64)
        supervised = np.zeros(self.length + 1, np.bool_)
        clean_only = np.ones(self.length + 1, np.bool_)
        images: list[StoredImage] = []
        lengths, end = [], 0
        for document in map(int, self.rows[row]):
            here = [] if self.images is None else list(self.images.of(document, end))
            # A longer conversation without images was cut.
            found = self.tokens[document][: None if here else self.text_length]
            start, end = end, end + found.size
            tokens[start:end] = found
            supervised[start:end] = self.supervision.of(document)[: found.size]
            clean_only[start:end] = False
            for image in here:
                clean_only[image.start : image.start + image.tokens] = True
            images += here
            lengths.append(found.size)
        sample = Sample(
            tokens=tokens,
            supervised=supervised,
            document_lengths=np.array([*lengths, self.length + 1 - end]),
        )
        if self.images is not None or self.text_length < self.length:
            sample["clean_only"], sample["images"] = clean_only[:-1], tuple(images)
        return sample
