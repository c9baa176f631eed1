import hashlib
from pathlib import Path

import numpy as np
import pytest

from data_prep import join
from data_prep.join import join_token_files
from nld_train.data import token_file
from nld_train.data.token_file import TokenFileWriter, bin_path, block_digest_of, digest_like, file_sha256, idx_path

DTYPE = np.dtype("<i4")


def write_parts(folder: Path, lengths: list[list[int]]) -> tuple[list[Path], list[np.ndarray]]:
    """Parts with documents of these lengths, and all documents."""
    drawn = np.random.default_rng(0)
    documents, prefixes = [], []
    for number, part in enumerate(lengths):
        rows = [drawn.integers(0, 131_072, length).astype(DTYPE) for length in part]
        prefix = folder / f"part-{number}"
        Path(f"{prefix}.bin").write_bytes(b"".join(row.tobytes() for row in rows))
        Path(f"{prefix}.lengths").write_bytes(np.array(part, dtype="<i4").tobytes())
        documents += rows
        prefixes.append(prefix)
    return prefixes, documents


@pytest.mark.parametrize("block", [4, 100, 1000, 1 << 26])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("lengths", [[[5, 70], [], [1], [300, 2]], [[]], [[25]]])
def test_joined_parts_are_the_file_that_one_writer_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, workers: int, lengths: list[list[int]]
) -> None:
    for module in (token_file, join):
        monkeypatch.setattr(module, "DIGEST_BLOCK", block)
    monkeypatch.setattr(token_file, "INDEX_DOCUMENTS", 2)
    prefixes, documents = write_parts(tmp_path, lengths)
    summary = join_token_files(tmp_path / "joined", prefixes, DTYPE, workers)
    with TokenFileWriter(tmp_path / "whole", DTYPE) as writer:
        for document in documents:
            writer.append(document)
        known = writer.finish()
    for path in (bin_path, idx_path):
        assert path(tmp_path / "joined").read_bytes() == path(tmp_path / "whole").read_bytes()
    sizes = (known.documents, known.tokens, known.bin_bytes, known.idx_bytes, known.idx_sha256)
    assert (summary.documents, summary.tokens, summary.bin_bytes, summary.idx_bytes, summary.idx_sha256) == sizes
    assert summary.bin_sha256 == block_digest_of(bin_path(tmp_path / "joined"))
    assert summary.bin_sha256 == digest_like(summary.bin_sha256, bin_path(tmp_path / "whole"))


def test_the_digest_of_blocks_says_that_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_file, "DIGEST_BLOCK", 10)
    path = tmp_path / "x"
    path.write_bytes(bytes(range(25)))
    parts = [hashlib.sha256(bytes(range(start, min(start + 10, 25)))).digest() for start in (0, 10, 20)]
    assert block_digest_of(path) == "sha256-of-64MiB-blocks:" + hashlib.sha256(b"".join(parts)).hexdigest()
    for size in (0, 3, 10):  # one block: the plain SHA-256, as `sha256sum` prints it
        path.write_bytes(bytes(size))
        assert block_digest_of(path) == file_sha256(path) == digest_like(file_sha256(path), path)
    path.write_bytes(bytes(20))
    assert block_digest_of(path).startswith("sha256-of-64MiB-blocks:")
