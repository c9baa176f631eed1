"""Images of parts, and of all parts together: PREFIX.images/ as nld_train/data/image_store.py describes it.

A part has its images once each, end to end in one file, and a record for each image of each conversation. Where parts
are put together, images that several of them have are kept once.
"""

import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.image_check import CheckedImage
from nld_train.data.image_store import (
    DOCUMENTS,
    IMAGES,
    PLACED_IMAGE,
    ImagesManifest,
    image_token_counts,
    images_folder,
    shard_path,
)
from nld_train.data.image_tokens import ImageSizes, ImageTokens
from nld_train.data.token_file import HashedFile, file_sha256

PART_BYTES, PART_IMAGES = ".images.bin", ".images.npy"  # of a part
SHARD_BYTES = 1 << 30  # about; an image is never cut
RECORD = np.dtype([("document", "<i8"), *PLACED_IMAGE.descr, ("digest", "V32"), ("suffix", "S5")])  # of a part's image


class PartImages(HashedFile):
    """Writes the images of a part."""

    def __init__(self, prefix: Path) -> None:
        super().__init__(Path(f"{prefix}{PART_BYTES}"))
        self._path = Path(f"{prefix}{PART_IMAGES}")
        self._offsets: dict[bytes, int] = {}
        self._size = 0
        self._records: list[tuple] = []

    def append(self, document: int, starts: Sequence[int], images: Sequence[tuple[bytes, CheckedImage]]) -> None:
        """Add the images of a document of the part. starts: the first token of each."""
        for start, (data, image) in zip(starts, images, strict=True):
            offset = self._offsets.setdefault(image.digest, self._size)
            if offset == self._size:
                self._write(data)
                self._size += len(data)
            placed = (start, image.rows, image.columns, 0, offset, len(data))
            self._records.append((document, *placed, image.digest, image.suffix.encode()))

    def finish(self) -> None:
        """Close the files."""
        self._close()
        with self._path.open("wb") as stream:
            np.save(stream, np.array(self._records, RECORD))


class ShardWriter:
    """Writes images into tar files, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes: list[int] = []  # of each shard
        self.digests: list[str] = []
        self.places: dict[bytes, tuple[int, int]] = {}  # shard and offset of an image, by its digest
        self._shard: HashedFile | None = None
        self._written = 0

    def place_of(self, record: np.void, data: BinaryIO) -> tuple[int, int]:
        """Shard and offset of a RECORD's image, written where it is new. data: the images of its part."""
        digest, size = record["digest"].tobytes(), int(record["size"])
        if digest in self.places:
            return self.places[digest]
        member = tarfile.TarInfo(digest.hex() + record["suffix"].decode())
        member.size = size
        padded = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if self._written and self._written + padded > SHARD_BYTES:
            self.finish()
        if self._shard is None:
            self._shard = HashedFile(shard_path(self.folder, len(self.bytes)))
        self._put(member.tobuf(tarfile.USTAR_FORMAT))
        self.places[digest] = len(self.bytes), self._written
        data.seek(int(record["offset"]))
        self._put(data.read(size).ljust(padded, b"\0"))
        return self.places[digest]

    def finish(self) -> None:
        """End the shard that is being written."""
        if self._shard is None:
            return
        end = self._written + 2 * tarfile.BLOCKSIZE  # two empty blocks end a tar file, which is filled to whole records
        self._put(bytes(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - self._written))
        self.bytes.append(self._written)
        self.digests.append(self._shard._close())
        self._shard, self._written = None, 0

    def _put(self, data: bytes) -> None:
        assert self._shard is not None, "a shard is open"
        self._shard._write(data)
        self._written += len(data)


def join_images(
    partial: Path,
    parts: Sequence[tuple[str, int]],
    tokens: ImageTokens | None,
    sizes: ImageSizes,
    converted: Counter[str],
) -> ImagesManifest | None:
    """Write `partial`.images/ from parts, given as (prefix, documents), in their order; None, and nothing is written,
    where they have no image."""
    if not any(len(_records_of(prefix)) for prefix, _ in parts):
        return None
    assert tokens is not None, "images have tokens"
    folder = images_folder(partial)
    folder.mkdir()
    writer, placed, counts = ShardWriter(folder), [], []
    for prefix, documents in parts:
        records = _records_of(prefix)
        placed.append(_place_records(prefix, records, writer))
        counts.append(np.bincount(records["document"], minlength=documents))
    writer.finish()
    images = np.concatenate(placed)
    np.save(folder / IMAGES, images)
    np.save(folder / DOCUMENTS, np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]), dtype="<i8"))
    return ImagesManifest(
        image_token_id=tokens.image,
        break_token_id=tokens.row_end,
        end_token_id=tokens.image_end,
        patch_size=sizes.patch_size,
        merge=sizes.merge,
        longest_edge=sizes.longest_edge,
        images=len(images),
        image_tokens=int(image_token_counts(images).sum()),
        files=len(writer.places),
        converted=dict(sorted(converted.items())),
        shard_bytes=writer.bytes,
        shard_sha256=writer.digests,
        documents_sha256=file_sha256(folder / DOCUMENTS),
        images_sha256=file_sha256(folder / IMAGES),
    )


def _records_of(prefix: str) -> NDArray:
    found: NDArray = np.load(f"{prefix}{PART_IMAGES}")
    return found


def _place_records(prefix: str, records: NDArray, writer: ShardWriter) -> NDArray:
    """The PLACED_IMAGE of each record of a part, its bytes written where they are new."""
    placed = np.empty(len(records), PLACED_IMAGE)
    for name in ("token_start", "rows", "columns", "size"):
        placed[name] = records[name]
    with open(f"{prefix}{PART_BYTES}", "rb") as data:
        for number, record in enumerate(records):
            placed[number]["shard"], placed[number]["offset"] = writer.place_of(record, data)
    return placed


def publish_images(partial: Path, prefix: Path) -> None:
    """Give `partial`.images/ its name, in place of an older one. Nothing else may be published before: until then the
    older file lacks its images, so its .idx, without which it is no file, goes first."""
    old, new = images_folder(prefix), images_folder(partial)
    if not old.exists() and not new.exists():
        return
    Path(f"{prefix}.idx").unlink(missing_ok=True)
    if old.exists():
        shutil.rmtree(old)
    if new.exists():
        os.replace(new, old)
