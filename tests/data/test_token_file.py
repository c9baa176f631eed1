import base64
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nld_train.data.token_file import (
    TokenFile,
    TokenFileWriter,
    bin_path,
    file_sha256,
    idx_path,
    token_dtype,
    write_index,
)
from nld_train.errors import UserError

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12, 65_000]]


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 65_499) -> Path:
    dtype = token_dtype(vocab_size)
    with TokenFileWriter(prefix, dtype) as writer:
        for document in documents:
            writer.append(np.array(document, dtype=dtype))
        writer.finish()
    return prefix


def read(prefix: Path) -> list[list[int]]:
    return [document.tolist() for document in TokenFile(prefix)]


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(2048, 2), (65_499, 2), (65_500, 4), (131_072, 4)])
def test_documents_come_back_in_the_type_megatron_chooses(tmp_path: Path, vocab_size: int, itemsize: int) -> None:
    prefix = write(tmp_path / "a.b", DOCUMENTS, vocab_size)
    tokens = TokenFile(prefix)
    assert [document.tolist() for document in tokens] == DOCUMENTS
    assert (len(tokens), tokens.tokens, tokens.lengths.tolist()) == (3, 9, [3, 1, 5])
    assert tokens.dtype.itemsize == itemsize
    assert tokens.flat.tolist() == sum(DOCUMENTS, [])


def test_ids_above_32767_survive_in_int32(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a", [[131_071, 0]], 131_072)) == [[131_071, 0]]


def test_joined_files_equal_one_file_byte_for_byte(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", DOCUMENTS)
    parts = [write(tmp_path / f"part{i}", part) for i, part in enumerate((DOCUMENTS[:2], [], DOCUMENTS[2:]))]
    with TokenFileWriter(tmp_path / "joined", token_dtype(100)) as writer:
        for part in parts:
            writer.append_file(part)
        writer.finish()
    for path in (bin_path, idx_path):
        assert path(tmp_path / "joined").read_bytes() == path(whole).read_bytes()


def test_the_summary_states_the_hashes_and_sizes_of_the_files(tmp_path: Path) -> None:
    with TokenFileWriter(tmp_path / "a", token_dtype(100)) as writer:
        writer.append(np.array([1, 2, 3], dtype=np.uint16))
        summary = writer.finish()
    binary, index = bin_path(tmp_path / "a"), idx_path(tmp_path / "a")
    assert (summary.documents, summary.tokens) == (1, 3)
    assert (summary.bin_bytes, summary.idx_bytes) == (binary.stat().st_size, index.stat().st_size)
    assert (summary.bin_sha256, summary.idx_sha256) == (file_sha256(binary), file_sha256(index))


@pytest.mark.parametrize("bad", [np.array([], dtype=np.uint16), np.array([1], dtype=np.int64)])
def test_the_writer_refuses_an_empty_document_and_another_type(tmp_path: Path, bad: np.ndarray) -> None:
    with TokenFileWriter(tmp_path / "a", token_dtype(100)) as writer, pytest.raises(AssertionError):
        writer.append(bad)


def test_a_document_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    tokens = TokenFile(write(tmp_path / "a", DOCUMENTS))
    for document in (-1, 3):
        with pytest.raises(IndexError, match="of 3"):
            tokens[document]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [Path.unlink, cut_short, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("which", [bin_path, idx_path])
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, which, damage) -> None:
    prefix = write(tmp_path / "a", DOCUMENTS)
    damage(which(prefix))
    with pytest.raises(UserError) as error:
        TokenFile(prefix)
    assert str(which(prefix)) in str(error.value) and "\n" not in str(error.value)


def test_a_foreign_index_is_refused(tmp_path: Path) -> None:
    prefix = write(tmp_path / "a", DOCUMENTS)
    idx_path(prefix).write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="not an index"):
        TokenFile(prefix)


@pytest.mark.megatron
@pytest.mark.parametrize("vocab_size", [65_499, 131_072])
def test_megatron_reads_the_same_documents(tmp_path: Path, vocab_size: int) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    prefix = write(tmp_path / "a", DOCUMENTS, vocab_size)
    theirs = IndexedDataset(str(prefix), multimodal=False, mmap=True)
    assert [theirs[i].tolist() for i in range(len(theirs))] == DOCUMENTS
    assert theirs.document_indices.tolist() == [0, 1, 2, 3]
    assert theirs[0].dtype == TokenFile(prefix).dtype


@pytest.mark.megatron
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_our_bytes_are_those_of_megatrons_own_builder(tmp_path: Path, dtype: type) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(bin_path(tmp_path / "theirs")), dtype=dtype)
    for document in DOCUMENTS:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(idx_path(tmp_path / "theirs")))
    ours = write(tmp_path / "ours", DOCUMENTS, 65_499 if dtype is np.uint16 else 131_072)
    for path in (bin_path, idx_path):
        assert path(ours).read_bytes() == path(tmp_path / "theirs").read_bytes()


def test_an_index_is_written_in_blocks_of_bounded_memory(tmp_path: Path) -> None:
    """What is held does not grow with the documents: 1e9 of them once took 36 GB."""
    block = np.full(1 << 18, 3, dtype=np.int32)
    peaks = []
    for blocks in (4, 16):
        tracemalloc.start()
        write_index(tmp_path / "a.idx", np.dtype("<i4"), blocks * block.size, lambda n=blocks: iter([block] * n))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "a.idx").stat().st_size > 80e6 > 4 * peaks[1] and peaks[1] < 1.1 * peaks[0]


# Written by datatrove 0.10.1, MegatronDocumentTokenizer(eos_token="</s>"), for three documents.
DATATROVE_BIN = "eAF6AX4BfQGOAQIApQACAIUBQQGqAGwAvABrAYgBQQG0AKUAtwC3AAIA"
DATATROVE_IDX = (
    "TU1JRElEWAAAAQAAAAAAAAAIAwAAAAAAAAAEAAAAAAAAAAYAAAACAAAADQAAAAAAAAAAAAAADAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAQAAAAAAAAAC"
    "AAAAAAAAAAMAAAAAAAAA"
)


def test_what_datatroves_megatron_stage_writes_is_read(tmp_path: Path) -> None:
    bin_path(tmp_path / "a").write_bytes(base64.b64decode(DATATROVE_BIN))
    idx_path(tmp_path / "a").write_bytes(base64.b64decode(DATATROVE_IDX))
    documents = read(tmp_path / "a")
    assert [len(document) for document in documents] == [6, 2, 13]
    assert all(document[-1] == 2 for document in documents) and TokenFile(tmp_path / "a").dtype == np.uint16
    write(tmp_path / "ours", documents)
    for path in (bin_path, idx_path):
        assert path(tmp_path / "ours").read_bytes() == path(tmp_path / "a").read_bytes()
