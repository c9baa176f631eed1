from pathlib import Path

import numpy as np
import pytest

from nld_train.data.supervision import Supervision, SupervisionWriter, supervised_path
from nld_train.data.token_file import TokenFileWriter, file_sha256, token_dtype
from nld_train.errors import UserError

DOCUMENTS = [[0, 1, 1], [0], [0, 0, 1, 0, 1]]


def write(prefix: Path, documents: list[list[int]]) -> str:
    with TokenFileWriter(prefix, token_dtype(400)) as tokens, SupervisionWriter(prefix) as supervised:
        for document in documents:
            tokens.append(np.full(len(document), 7, dtype=tokens.dtype))
            supervised.append(np.array(document, dtype=bool))
        tokens.finish()
        return supervised.finish()


def test_the_supervision_of_every_document_comes_back(tmp_path: Path) -> None:
    digest = write(tmp_path / "a", DOCUMENTS)
    supervision = Supervision(tmp_path / "a")
    assert [supervision.of(i).tolist() for i in range(len(supervision))] == DOCUMENTS
    assert supervision.flat.dtype == np.bool_ and supervision.of(2).sum() == 2
    assert supervised_path(tmp_path / "a").read_bytes() == bytes(sum(DOCUMENTS, []))
    assert digest == file_sha256(supervised_path(tmp_path / "a"))


def test_joined_files_equal_one_file(tmp_path: Path) -> None:
    digest = write(tmp_path / "whole", DOCUMENTS)
    for name, part in (("one", DOCUMENTS[:1]), ("two", DOCUMENTS[1:])):
        write(tmp_path / name, part)
    with SupervisionWriter(tmp_path / "joined") as joined:
        joined.append_file(tmp_path / "one")
        joined.append_file(tmp_path / "two")
        assert joined.finish() == digest and joined.supervised_tokens == 4


@pytest.mark.parametrize("bad", [[1, 0], []])
def test_a_first_token_never_counts(tmp_path: Path, bad: list[int]) -> None:
    with SupervisionWriter(tmp_path / "a") as writer, pytest.raises(AssertionError):
        writer.append(np.array(bad, dtype=bool))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\x01")])
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, damage) -> None:
    write(tmp_path / "a", DOCUMENTS)
    damage(supervised_path(tmp_path / "a"))
    with pytest.raises(UserError) as error:
        Supervision(tmp_path / "a")
    assert "a.supervised.bin" in str(error.value) and "\n" not in str(error.value)


def test_a_document_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a", DOCUMENTS)
    for document in (-1, 3):
        with pytest.raises(IndexError, match="of 3"):
            Supervision(tmp_path / "a").of(document)
