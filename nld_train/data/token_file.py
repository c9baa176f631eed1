"""Token files: Megatron's indexed dataset format (PREFIX.bin and PREFIX.idx), one sequence per document.

PREFIX.bin holds the tokens of all documents, end to end. PREFIX.idx, little-endian: a header (magic, version, type
code, sequences, sequences + 1), then int32 lengths, int64 byte offsets into .bin, and the int64 document boundaries.
"""

import hashlib
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nld_train.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TYPE_CODES: dict[int, np.dtype] = {
    4: np.dtype("<i4"),
    8: np.dtype("<u2"),
}  # Megatron numbers more types; token files use these two
COPY_BYTES = 1 << 22
REMAKE = "make the token file again with `nld data prepare`"


def bin_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.idx")


def token_dtype(vocab_size: int) -> np.dtype:
    """The type Megatron's own writer chooses for a vocabulary: uint16 below 65,500 ids, else int32."""
    return np.dtype("<u2") if vocab_size < 65_500 else np.dtype("<i4")


def file_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a few MiB at a time."""
    with path.open("rb") as stream:
        while block := stream.read(COPY_BYTES):
            yield block


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for block in file_chunks(path):
        digest.update(block)
    return digest.hexdigest()


class HashedFile:
    """A file that is being written, and the SHA-256 of what was written."""

    def __init__(self, path: Path) -> None:
        self._digest = hashlib.sha256()
        self._stream = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)

    def _close(self) -> str:
        """Returns the hex digest."""
        self._stream.close()
        return self._digest.hexdigest()


@dataclass(frozen=True)
class TokenFileSummary:
    """What was written: counts, sizes in bytes and SHA-256 hex digests."""

    documents: int
    tokens: int
    bin_bytes: int
    idx_bytes: int
    bin_sha256: str
    idx_sha256: str


class TokenFileWriter(HashedFile):
    """Streams documents into PREFIX.bin and, at `finish`, writes PREFIX.idx. Holds 4 bytes per document in memory.

    It writes under the names it is given: give it a prefix inside `staging.staged` to publish whole files only.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype) -> None:
        assert dtype in TYPE_CODES.values(), f"token files hold {list(TYPE_CODES.values())}, not {dtype}"
        super().__init__(bin_path(prefix))
        self.prefix = prefix
        self.dtype = dtype
        self._lengths = array("i")

    def append(self, tokens: NDArray[np.integer]) -> None:
        """Add one document, `tokens` [n] of the writer's dtype, n >= 1."""
        assert tokens.dtype == self.dtype, f"got {tokens.dtype} tokens for a {self.dtype} file"
        assert tokens.ndim == 1 and tokens.size > 0, f"a document is a non-empty row of tokens, got {tokens.shape}"
        self._write(tokens.tobytes())
        self._lengths.append(tokens.size)

    def append_file(self, prefix: str | Path) -> None:
        """Add every document of another token file, block by block."""
        index = read_token_index(prefix)
        assert index.dtype == self.dtype, f"got a {index.dtype} file for a {self.dtype} file"
        for block in file_chunks(bin_path(prefix)):
            self._write(block)
        self._lengths.frombytes(index.lengths.tobytes())

    def finish(self) -> TokenFileSummary:
        """Close PREFIX.bin and write PREFIX.idx."""
        bin_sha256 = self._close()
        lengths = np.frombuffer(self._lengths, dtype="<i4")
        ends = np.cumsum(lengths, dtype="<i8")
        with idx_path(self.prefix).open("wb") as stream:
            code = next(code for code, dtype in TYPE_CODES.items() if dtype == self.dtype)
            stream.write(HEADER.pack(MAGIC, VERSION, code, lengths.size, lengths.size + 1))
            stream.write(lengths.tobytes())
            stream.write(((ends - lengths) * self.dtype.itemsize).tobytes())
            stream.write(np.arange(lengths.size + 1, dtype="<i8").tobytes())
        bin_file, idx_file = bin_path(self.prefix), idx_path(self.prefix)
        return TokenFileSummary(
            documents=lengths.size,
            tokens=int(lengths.sum(dtype=np.int64)),
            bin_bytes=bin_file.stat().st_size,
            idx_bytes=idx_file.stat().st_size,
            bin_sha256=bin_sha256,
            idx_sha256=file_sha256(idx_file),
        )


@dataclass(frozen=True)
class TokenIndex:
    """PREFIX.idx, memory-mapped."""

    dtype: np.dtype
    lengths: NDArray[np.int32]  # [documents] tokens
    offsets: NDArray[np.int64]  # [documents] bytes into PREFIX.bin


def read_token_index(prefix: str | Path) -> TokenIndex:
    """Map PREFIX.idx. Raises UserError where it is missing, foreign or cut short."""
    path = idx_path(prefix)
    if not path.is_file():
        raise UserError(f"no file {path}", "the prefix of a finished token file", "check the path, or " + REMAKE)
    with path.open("rb") as stream:
        head = stream.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise UserError(f"{path} is not an index of a token file", "Megatron's indexed format", REMAKE)
    _, version, code, documents, boundaries = HEADER.unpack(head)
    if version != VERSION or code not in TYPE_CODES or boundaries != documents + 1:
        raise UserError(
            f"{path} has version {version}, type code {code}, {documents} sequences in {boundaries - 1} documents",
            f"version {VERSION}, type codes {sorted(TYPE_CODES)}, one sequence per document",
            REMAKE,
        )
    size, expected = path.stat().st_size, HEADER.size + documents * (4 + 8) + boundaries * 8
    if size != expected:
        raise UserError(f"{path} has {size} bytes", f"{expected} bytes for its {documents} documents", REMAKE)
    lengths = map_array(path, np.dtype("<i4"), HEADER.size, documents)
    offsets = map_array(path, np.dtype("<i8"), HEADER.size + lengths.nbytes, documents)
    return TokenIndex(TYPE_CODES[code], lengths, offsets)


def map_array(path: Path, dtype: np.dtype, offset: int, count: int) -> NDArray:
    """Map `count` numbers of a file; an empty stretch, which cannot be mapped, is an empty array."""
    if count == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))


class TokenFile:
    """A token file, memory-mapped: `len(file)` documents, `file[i]` one document as a read-only array [n]."""

    def __init__(self, prefix: str | Path) -> None:
        """Raises UserError where a file is missing or its size disagrees with the index."""
        index = read_token_index(prefix)
        path = bin_path(prefix)
        self.dtype = index.dtype
        self.lengths = index.lengths
        self.tokens = int(index.lengths.sum(dtype=np.int64))
        if not path.is_file():
            raise UserError(f"no file {path}", "a .bin beside the .idx", "copy both files, or " + REMAKE)
        size, expected = path.stat().st_size, self.tokens * self.dtype.itemsize
        if size != expected:
            raise UserError(f"{path} has {size} bytes", f"{expected} bytes for its {self.tokens} tokens", REMAKE)
        self.flat = map_array(path, self.dtype, 0, self.tokens)  # [tokens] all documents, end to end
        self._starts = index.offsets

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> NDArray[np.integer]:
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {len(self)}")
        start = int(self._starts[document]) // self.dtype.itemsize
        return self.flat[start : start + int(self.lengths[document])]
