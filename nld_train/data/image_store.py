"""PREFIX.images/: the images of a chat file, as they came, and where they stand in its conversations.

  shard-00000.tar, ...  each image once, named by the SHA-256 of its bytes; any tar reads them
  documents.npy         int64 [documents + 1]: images documents[d] .. documents[d + 1] - 1 are those of document d
  images.npy            one PLACED_IMAGE for each image of each document, in order

Loaders of such tar files, those of WebDataset and of Energon, are not used. Their saved state is that of a worker of a
rank, so that a run that goes on under another layout reads other rows; here a row's number says which images it has.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from nld_train.errors import UserError
from nld_train.vision_config import image_token_count

SUFFIX = ".images"
DOCUMENTS, IMAGES = "documents.npy", "images.npy"
REMAKE = "make the files again with `nld data prepare-chat`"
OPEN_SHARDS = 64  # files that a process keeps open
PLACED_IMAGE = np.dtype(
    [
        ("token_start", "<i4"),  # in its document, the first cell
        ("rows", "<i4"),  # of cells
        ("columns", "<i4"),
        ("shard", "<i4"),
        ("offset", "<i8"),  # bytes into the shard, behind the header of its member
        ("size", "<i8"),  # bytes
    ]
)


@dataclass(frozen=True, kw_only=True)
class ImagesManifest:
    """The images of a chat file. The sizes and ids are those of the run's vision section."""

    image_token_id: int
    break_token_id: int
    end_token_id: int
    patch_size: int  # pixels
    merge: int  # patches of a side that are one token
    longest_edge: int  # pixels; larger images are made smaller when they are decoded
    images: int  # in all conversations together
    image_tokens: int  # in all conversations together
    files: int  # that differ: each is stored once
    converted: dict[str, int]  # what is changed when images are decoded, with its count in the conversations
    shard_bytes: list[int]
    shard_sha256: list[str]
    documents_sha256: str
    images_sha256: str

    def digests(self, prefix: str | Path) -> dict[Path, str]:
        """The files of PREFIX.images/, and the SHA-256 that each should have."""
        folder = images_folder(prefix)
        shards = {shard_path(folder, number): digest for number, digest in enumerate(self.shard_sha256)}
        return {**shards, folder / DOCUMENTS: self.documents_sha256, folder / IMAGES: self.images_sha256}


@dataclass(frozen=True)
class StoredImage:
    """An image of a row, as it is stored."""

    start: int  # the row's token that is the image's first cell
    rows: int  # of cells
    columns: int
    cell: int  # pixels
    longest_edge: int  # pixels
    data: bytes

    @property
    def tokens(self) -> int:
        """How many tokens of the row it has."""
        return image_token_count(self.rows, self.columns)


def images_folder(prefix: str | Path) -> Path:
    return Path(f"{prefix}{SUFFIX}")


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05}.tar"


def image_token_counts(placed: NDArray) -> NDArray[np.int64]:
    """Tokens of each PLACED_IMAGE."""
    counts: NDArray[np.int64] = placed["rows"].astype(np.int64) * (placed["columns"].astype(np.int64) + 1)
    return counts


def check_image_files(prefix: str | Path, images: ImagesManifest, documents: int) -> None:
    """Raise UserError where a file of PREFIX.images/ is missing or has another size than its manifest says."""
    for path in images.digests(prefix):
        if not path.is_file():
            raise UserError(
                f"no file {path}", "the images beside the .bin and .idx", "copy the folder along, or " + REMAKE
            )
    folder = images_folder(prefix)
    for number, size in enumerate(images.shard_bytes):
        found = shard_path(folder, number).stat().st_size
        if found != size:
            raise UserError(f"{shard_path(folder, number)} has {found} bytes", f"{size} as in the manifest", REMAKE)
    index = ImageIndex(prefix)
    if (len(index.ranges) - 1, len(index.placed)) != (documents, images.images):
        got = f"{folder}: {len(index.placed)} images in {len(index.ranges) - 1} documents"
        raise UserError(got, f"{images.images} in {documents} as in the manifest", REMAKE)


class ImageIndex:
    """Which images stand where, memory-mapped."""

    def __init__(self, prefix: str | Path) -> None:
        """Raises UserError where an index is none."""
        folder = images_folder(prefix)
        self.ranges: NDArray[np.int64] = _map_index(folder / DOCUMENTS, np.dtype("<i8"))
        self.placed: NDArray = _map_index(folder / IMAGES, PLACED_IMAGE)

    def of(self, document: int) -> NDArray:
        """The images of a document: [n] PLACED_IMAGE."""
        return self.placed[self.ranges[document] : self.ranges[document + 1]]

    def document_tokens(self) -> NDArray[np.int64]:
        """Image tokens of each document: [documents]."""
        sums = np.zeros(len(self.placed) + 1, np.int64)
        np.cumsum(image_token_counts(self.placed), out=sums[1:])
        return sums[self.ranges[1:]] - sums[self.ranges[:-1]]


def _map_index(path: Path, dtype: np.dtype) -> NDArray:
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "the index as written", REMAKE) from error
    if found.dtype != dtype or found.ndim != 1:
        raise UserError(f"{path} holds {found.dtype} {found.shape}", f"a row of {dtype}", REMAKE)
    return found


@dataclass
class ShardReader:
    """The bytes of images, from the shards. A process that was forked opens files of its own, and a copy has none."""

    folder: Path
    _open: dict[int, BinaryIO] = field(default_factory=dict)
    _owner: int = field(default_factory=os.getpid)

    def read_image(self, shard: int, offset: int, size: int) -> bytes:
        """The bytes of one image."""
        if self._owner != os.getpid():
            self._open, self._owner = {}, os.getpid()
        if shard not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._open.pop(next(iter(self._open))).close()
            self._open[shard] = shard_path(self.folder, shard).open("rb")
        data = os.pread(self._open[shard].fileno(), size, offset)
        assert len(data) == size, f"{shard_path(self.folder, shard)} ends before byte {offset + size}"
        return data

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "_open": {}, "_owner": 0}


class StoredImages:
    """The images of a chat file: `of(document, start)` goes with `TokenFile(prefix)[document]`."""

    def __init__(self, prefix: str | Path, images: ImagesManifest) -> None:
        """Raises UserError where an index cannot be read."""
        self.index, self.reader = ImageIndex(prefix), ShardReader(images_folder(prefix))
        self.cell, self.longest_edge = images.patch_size * images.merge, images.longest_edge

    def of(self, document: int, start: int) -> Iterator[StoredImage]:
        """The images of a document that begins at the row's token `start`, in order."""
        for placed in self.index.of(document):
            token, rows, columns, shard, offset, size = (int(number) for number in placed.tolist())
            data = self.reader.read_image(shard, offset, size)
            yield StoredImage(start + token, rows, columns, self.cell, self.longest_edge, data)
