"""Parts become one token file: workers copy and hash its blocks, and no process reads it all."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.encode import LENGTHS, TOKENS
from data_prep.pool import run_ordered
from nld_train.data.token_file import (
    COPY_BYTES,
    DIGEST_BLOCK,
    TokenFileSummary,
    bin_path,
    idx_path,
    join_digests,
    read_blocks,
    write_index,
)

LENGTH = np.dtype("<i4")


@dataclass(frozen=True)
class Stretch:
    """Consecutive bytes of a file."""

    path: str
    start: int
    count: int


@dataclass(frozen=True)
class Block:
    """DIGEST_BLOCK bytes of a file that is being put together, or its end, and where they come from."""

    target: str
    start: int
    stretches: tuple[Stretch, ...]


def cut_blocks(target: Path, files: Sequence[Path]) -> Iterator[Block]:
    """The blocks of `files`, end to end."""
    start, room = 0, DIGEST_BLOCK
    stretches: list[Stretch] = []
    for path in files:
        position, size = 0, path.stat().st_size
        while position < size:
            count = min(room, size - position)
            stretches.append(Stretch(str(path), position, count))
            position += count
            room -= count
            if room == 0:
                yield Block(str(target), start, tuple(stretches))
                start, room, stretches = start + DIGEST_BLOCK, DIGEST_BLOCK, []
    if stretches:
        yield Block(str(target), start, tuple(stretches))


def copy_block(block: Block) -> bytes:
    """Write a block into its place; returns its SHA-256."""
    digest = hashlib.sha256()
    with open(block.target, "r+b") as out:
        out.seek(block.start)
        for stretch in block.stretches:
            with open(stretch.path, "rb") as stream:
                stream.seek(stretch.start)
                left = stretch.count
                while left:
                    data = stream.read(min(left, COPY_BYTES))
                    assert data, f"{stretch.path} became shorter"
                    out.write(data)
                    digest.update(data)
                    left -= len(data)
    return digest.digest()


def join_token_files(partial: Path, prefixes: Sequence[Path], dtype: np.dtype, workers: int) -> TokenFileSummary:
    """Write `partial`.bin and .idx from the parts under `prefixes`, in their order."""
    target = bin_path(partial)
    target.touch()
    blocks = cut_blocks(target, [Path(f"{prefix}{TOKENS}") for prefix in prefixes])
    with closing(run_ordered(copy_block, blocks, workers)) as digests:
        bin_sha256 = join_digests(list(digests) or [hashlib.sha256().digest()])
    counts = [Path(f"{prefix}{LENGTHS}").stat().st_size // LENGTH.itemsize for prefix in prefixes]

    def lengths() -> Iterator[NDArray[np.int32]]:
        for prefix, count in zip(prefixes, counts, strict=True):
            yield from read_blocks(Path(f"{prefix}{LENGTHS}"), LENGTH, 0, count)

    idx_sha256 = write_index(idx_path(partial), dtype, sum(counts), lengths)
    bin_bytes = target.stat().st_size
    return TokenFileSummary(
        documents=sum(counts),
        tokens=bin_bytes // dtype.itemsize,
        bin_bytes=bin_bytes,
        idx_bytes=idx_path(partial).stat().st_size,
        bin_sha256=bin_sha256,
        idx_sha256=idx_sha256,
    )
