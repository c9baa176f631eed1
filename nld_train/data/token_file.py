"""Token files: Megatron's indexed dataset format (PREFIX.bin and PREFIX.idx), one sequence per document.

PREFIX.bin holds the tokens of all documents, end to end. PREFIX.idx, little-endian: a header (magic, version, type
code, sequences, sequences + 1), then int32 lengths, int64 byte offsets into .bin, and the int64 document boundaries.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator
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
INDEX_DOCUMENTS = 1 << 20  # of an index that is being written, held in memory at a time
DIGEST_BLOCK = 1 << 26  # bytes; blocks of a large file are hashed each by itself, so that several processes can
BLOCK_DIGESTS = "sha256-of-64MiB-blocks:"  # says which kind of digest follows
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


def join_digests(digests: list[bytes]) -> str:
    """The digest of a file by the SHA-256 of its consecutive DIGEST_BLOCKs: of one block that of the block, in hex;
    of more, BLOCK_DIGESTS and the SHA-256 of their digests."""
    assert digests, "a file has at least one block, be it empty"
    if len(digests) == 1:
        return digests[0].hex()
    return BLOCK_DIGESTS + hashlib.sha256(b"".join(digests)).hexdigest()


def block_digest_of(path: Path) -> str:
    """What `join_digests` gives for a file."""
    digests, digest, room = [], hashlib.sha256(), DIGEST_BLOCK
    with path.open("rb") as stream:
        while block := stream.read(min(COPY_BYTES, room)):
            digest.update(block)
            room -= len(block)
            if room == 0:
                digests.append(digest.digest())
                digest, room = hashlib.sha256(), DIGEST_BLOCK
    if room < DIGEST_BLOCK or not digests:
        digests.append(digest.digest())
    return join_digests(digests)


def digest_like(known: str, path: Path) -> str:
    """The digest of a file, of the kind that `known` is."""
    return block_digest_of(path) if known.startswith(BLOCK_DIGESTS) else file_sha256(path)


def write_index(path: Path, dtype: np.dtype, documents: int, lengths: Callable[[], Iterator[NDArray[np.int32]]]) -> str:
    """Write a PREFIX.idx; returns its SHA-256 in hex. `lengths()` gives the lengths of all documents, in tokens, block
    by block: it is called twice, and no more than a block is held in memory."""
    code = next(code for code, known in TYPE_CODES.items() if known == dtype)
    with HashedFile(path) as out:
        out._write(HEADER.pack(MAGIC, VERSION, code, documents, documents + 1))
        written = 0
        for block in lengths():
            out._write(block.astype("<i4", copy=False).tobytes())
            written += block.size
        assert written == documents, f"{written} lengths for {documents} documents"
        offset = 0  # bytes
        for block in lengths():
            ends = offset + np.cumsum(block, dtype="<i8") * dtype.itemsize
            out._write((ends - block.astype("<i8") * dtype.itemsize).tobytes())
            offset = int(ends[-1]) if ends.size else offset
        for start in range(0, documents + 1, INDEX_DOCUMENTS):
            out._write(np.arange(start, min(start + INDEX_DOCUMENTS, documents + 1), dtype="<i8").tobytes())
        return out._close()


def read_blocks(path: Path, dtype: np.dtype, offset: int, count: int) -> Iterator[NDArray]:
    """`count` numbers of a file from a byte offset on, block by block."""
    with path.open("rb") as stream:
        stream.seek(offset)
        while count:
            block = np.fromfile(stream, dtype, min(count, INDEX_DOCUMENTS))
            assert block.size, f"{path} ends {count} numbers too early"
            count -= block.size
            yield block


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
    """Streams documents into PREFIX.bin and their lengths into PREFIX.lengths, from which `finish` writes PREFIX.idx.

    It writes under the names it is given: give it a prefix inside `staging.staged` to publish whole files only.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype) -> None:
        assert dtype in TYPE_CODES.values(), f"token files hold {list(TYPE_CODES.values())}, not {dtype}"
        super().__init__(bin_path(prefix))
        self.prefix = prefix
        self.dtype = dtype
        self._lengths_path = Path(f"{prefix}.lengths")
        self._lengths = self._lengths_path.open("wb")
        self._documents = self._tokens = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._lengths.close()
        self._lengths_path.unlink(missing_ok=True)

    def append(self, tokens: NDArray[np.integer]) -> None:
        """Add one document, `tokens` [n] of the writer's dtype, n >= 1."""
        assert tokens.dtype == self.dtype, f"got {tokens.dtype} tokens for a {self.dtype} file"
        assert tokens.ndim == 1 and tokens.size > 0, f"a document is a non-empty row of tokens, got {tokens.shape}"
        self._write(tokens.tobytes())
        self._count(np.array([tokens.size], dtype="<i4"))

    def append_file(self, prefix: str | Path) -> None:
        """Add every document of another token file, block by block."""
        index = read_token_index(prefix)
        assert index.dtype == self.dtype, f"got a {index.dtype} file for a {self.dtype} file"
        for block in file_chunks(bin_path(prefix)):
            self._write(block)
        for lengths in read_blocks(idx_path(prefix), np.dtype("<i4"), HEADER.size, len(index.lengths)):
            self._count(lengths)

    def _count(self, lengths: NDArray[np.int32]) -> None:
        self._lengths.write(lengths.tobytes())
        self._documents += lengths.size
        self._tokens += int(lengths.sum(dtype=np.int64))

    def finish(self) -> TokenFileSummary:
        """Close PREFIX.bin and write PREFIX.idx."""
        bin_sha256 = self._close()
        self._lengths.close()
        bin_file, idx_file = bin_path(self.prefix), idx_path(self.prefix)
        count, path = self._documents, self._lengths_path
        idx_sha256 = write_index(idx_file, self.dtype, count, lambda: read_blocks(path, np.dtype("<i4"), 0, count))
        return TokenFileSummary(
            documents=count,
            tokens=self._tokens,
            bin_bytes=bin_file.stat().st_size,
            idx_bytes=idx_file.stat().st_size,
            bin_sha256=bin_sha256,
            idx_sha256=idx_sha256,
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
