"""Rows of plain text: an epoch reads the documents of a part in an order of its own, end to end, and cuts rows of it.

Row r of an epoch holds L tokens and the one behind them, which the last of them predicts and with which row r + 1
begins. The tail that fills no row, 1 to L tokens, is read by no row of that epoch: in another one it is another tail.

FOLDER/text-KEY/   where KEY is a digest of the file's index and the split:
  train.npy, validation.npy, tokens.json   which documents each part has, and how many tokens they are
  PART-L-SEED-EPOCH/                       documents.npy, starts.npy, order.npy of a large epoch
"""

import hashlib
import json
import logging
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nld_train.config import DataConfig, require
from nld_train.data.blended_rows import Sample
from nld_train.data.manifest import read_manifest
from nld_train.data.splits import DOCUMENT_ORDER, PARTS, ROW_ORDER, epoch_permutation, split_documents
from nld_train.data.token_file import TokenFile, read_token_index
from nld_train.files import staged_folder

logger = logging.getLogger(__name__)
VERSION = 1  # of the rows: raise it where the same settings would give other ones
KEPT_FROM = 1 << 20  # documents and rows of an epoch that is kept in a folder; a smaller one is made in a moment


@dataclass(frozen=True)
class TextEpoch:
    """One pass through a part's documents, cut into rows."""

    documents: NDArray[np.int64]  # [documents] numbers, in the order in which they are read
    starts: NDArray[np.int64]  # [rows, 2] where a row begins: a place in `documents`, and a token of that document
    order: NDArray[np.int64]  # [rows] which row comes when


@dataclass(frozen=True)
class TextPart:
    """The training or the validation part of a file."""

    name: str
    documents: NDArray[np.int64]  # [documents] numbers, ascending
    tokens: int


class TextFileRows:
    """The rows of one part of a text file. folder: where large epochs are kept."""

    def __init__(self, prefix: str, part: TextPart, data: DataConfig, folder: Path) -> None:
        """Raises: UserError where the part fills no row."""
        check_text_part(prefix, part, data)
        self.part, self.data, self.folder = part, data, folder
        self.length, self.shuffle_seed = data.sequence_length, data.shuffle_seed
        self.tokens = TokenFile(prefix)
        self._epoch: tuple[int, TextEpoch] | None = None  # the one that was last read

    def __len__(self) -> int:
        return count_text_rows(self.part.tokens, self.length)

    def epoch_row(self, epoch: int, place: int) -> Sample:
        """tokens [L + 1] int64, supervised [L + 1] bool, document_lengths: every token counts."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self.open_epoch(epoch)
        opened = self._epoch[1]
        document, offset = (int(number) for number in opened.starts[opened.order[place]])
        pieces: list[NDArray] = []
        missing = self.length + 1
        while missing:
            pieces.append(self.tokens[int(opened.documents[document])][offset : offset + missing])
            missing -= pieces[-1].size
            document, offset = document + 1, 0
        tokens = np.concatenate(pieces).astype(np.int64)
        lengths = np.array([piece.size for piece in pieces])
        return {"tokens": tokens, "supervised": np.ones(tokens.size, np.bool_), "document_lengths": lengths}

    def prepare_epochs(self, epochs: range) -> None:
        """Make and keep these epochs where they are large."""
        if self._is_kept():
            for epoch in epochs:
                self.open_epoch(epoch)

    def _is_kept(self) -> bool:
        return epoch_is_kept(len(self.part.documents), len(self))

    def open_epoch(self, epoch: int) -> TextEpoch:
        """An epoch. A large one is made by whoever opens it first, and kept."""
        if not self._is_kept():
            return self._make_epoch(epoch)
        place = epoch_folder(self.folder, self.part.name, self.data, epoch)
        if not place.is_dir():
            logger.info("%s: making the order of the rows of epoch %d", self.folder, epoch)
            made = self._make_epoch(epoch)
            with staged_folder(place, overwrite=False) as partial:
                for name, array in vars(made).items():
                    np.save(partial / f"{name}.npy", array)
        arrays = {entry.name: np.load(place / f"{entry.name}.npy", mmap_mode="r") for entry in fields(TextEpoch)}
        return TextEpoch(**arrays)

    def _make_epoch(self, epoch: int) -> TextEpoch:
        shuffled = epoch_permutation(self.shuffle_seed, epoch, len(self.part.documents), DOCUMENT_ORDER)
        documents = self.part.documents[shuffled]
        starts = cut_text_rows(self.tokens.lengths[documents], self.length)
        return TextEpoch(documents, starts, epoch_permutation(self.shuffle_seed, epoch, len(starts), ROW_ORDER))


def epoch_is_kept(documents: int, rows: int) -> bool:
    """Whether an epoch is large enough to be kept in a folder."""
    return documents + rows >= KEPT_FROM


def epoch_folder(place: Path, part: str, data: DataConfig, epoch: int) -> Path:
    """Where a large epoch of a part is kept. place: as `parts_folder` has it."""
    return place / f"{part}-{data.sequence_length}-{data.shuffle_seed}-{epoch}"


def parts_folder(prefix: str, data: DataConfig, folder: Path) -> Path:
    """Where the parts of a text file are kept in `folder`."""
    key = json.dumps([VERSION, read_manifest(prefix).idx_sha256, data.split])
    return folder / f"text-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def count_text_rows(tokens: int, length: int) -> int:
    """Rows of `length` tokens that an epoch of `tokens` tokens fills; the last row needs one token behind it."""
    return max(tokens - 1, 0) // length


def cut_text_rows(lengths: NDArray[np.integer], length: int) -> NDArray[np.int64]:
    """Where the rows of documents of `lengths` [documents], end to end, begin: [rows, 2] document and token in it."""
    ends = np.cumsum(lengths, dtype=np.int64)
    firsts = np.arange(count_text_rows(int(ends[-1]), length)) * length
    places = np.searchsorted(ends, firsts, side="right")
    return np.stack([places, firsts - (ends[places] - lengths[places])], axis=1)


def open_text_parts(prefix: str, data: DataConfig, folder: Path) -> tuple[dict[str, TextPart], Path]:
    """The parts of a text file by name, and the folder in `folder` that keeps them, made where it is missing."""
    place = parts_folder(prefix, data, folder)
    if not place.is_dir():
        made = make_text_parts(prefix, data)
        with staged_folder(place, overwrite=False) as partial:
            for name, part in made.items():
                np.save(partial / f"{name}.npy", part.documents)
            tokens = {name: part.tokens for name, part in made.items()}
            (partial / "tokens.json").write_text(json.dumps(tokens) + "\n", encoding="utf-8")
    tokens = json.loads((place / "tokens.json").read_text(encoding="utf-8"))
    return {name: TextPart(name, np.load(place / f"{name}.npy", mmap_mode="r"), tokens[name]) for name in PARTS}, place


def make_text_parts(prefix: str, data: DataConfig) -> dict[str, TextPart]:
    """Draw which documents of a text file train and which validate. Raises UserError."""
    lengths = read_token_index(prefix).lengths
    documents = split_documents(len(lengths), data.split)
    return {
        name: TextPart(name, numbers, int(lengths[numbers].sum(dtype=np.int64))) for name, numbers in documents.items()
    }


def check_text_part(prefix: str, part: TextPart, data: DataConfig) -> None:
    """Raise UserError where a part fills no row."""
    require(
        count_text_rows(part.tokens, data.sequence_length) > 0,
        f"{prefix} has {len(part.documents):,} documents of {part.tokens:,} tokens for {part.name} "
        f"under data.split={data.split}",
        f"more than data.sequence_length={data.sequence_length} tokens",
        "give more data, other shares or shorter rows; train.eval_batches=0 needs no validation",
    )
