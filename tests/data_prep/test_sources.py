from pathlib import Path

import pytest

from data_prep import sources
from data_prep.sources import FilePiece, TextRecord, cut_into_chunks, find_files, read_lines, read_piece
from nld_train.errors import UserError


def write(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def records(path: Path, data: bytes) -> list[TextRecord]:
    write(path, data)
    return [
        record for chunk in cut_into_chunks([path], 1 << 20) for piece in chunk for record in read_piece(piece, "text")
    ]


def test_folders_are_searched_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/z.py", "b/a.TXT", "a.md", "b/c/d.jsonl", ".git/x.py", "b/.hidden.py", "b/image.png"):
        write(tmp_path / name)
    found = [path.relative_to(tmp_path).as_posix() for path in find_files([tmp_path], sources.SUFFIXES)]
    assert found == ["a.md", "b/a.TXT", "b/z.py", "b/c/d.jsonl"]


def test_an_unreadable_folder_is_not_left_out_silently(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone"):
        list(sources.walk_files(tmp_path / "gone"))


def test_named_files_are_taken_in_the_order_given_whatever_their_suffix(tmp_path: Path) -> None:
    names = [write(tmp_path / name) for name in ("b.py", "a.weird")]
    assert find_files(names, [".py"]) == names


@pytest.mark.parametrize(
    ("inputs", "suffixes", "said"),
    [(["missing"], [".py"], "no file or folder"), (["folder"], [".py"], "no file to read"),
     (["folder"], ["txt"], "begin with a dot"), (["folder", "folder/a.txt"], [".txt"], "twice")],
)  # fmt: skip
def test_inputs_that_cannot_be_meant_are_refused(tmp_path: Path, inputs, suffixes, said: str) -> None:
    write(tmp_path / "folder" / "a.txt")
    with pytest.raises(UserError, match=said):
        find_files([tmp_path / name for name in inputs], suffixes)


@pytest.mark.parametrize("data", [b"one\ntwo\n\nfour", b"one\n", b"\n\n\n", b"", b"a\r\nbb\r\n", b"x" * 30 + b"\ny\n"])
@pytest.mark.parametrize("piece_bytes", range(1, 12))
def test_every_line_is_read_once_wherever_the_cuts_fall(tmp_path: Path, data: bytes, piece_bytes: int) -> None:
    path = write(tmp_path / "a.jsonl", data)
    pieces = [piece for chunk in cut_into_chunks([path], piece_bytes) for piece in chunk]
    assert [line for piece in pieces for line in read_lines(piece)] == data.splitlines(keepends=True)
    assert sum(piece.size for piece in pieces) == len(data)


def test_small_files_share_a_chunk_and_text_files_stay_whole(tmp_path: Path) -> None:
    sizes = {"a.txt": 4, "b.txt": 4, "c.txt": 25, "d.jsonl": 15}
    files = [write(tmp_path / name, b"x" * size) for name, size in sizes.items()]
    chunks = [
        [(Path(piece.path).name, piece.start, piece.end) for piece in chunk] for chunk in cut_into_chunks(files, 10)
    ]
    assert chunks == [
        [("a.txt", 0, 4), ("b.txt", 0, 4)],
        [("c.txt", 0, 25)],
        [("d.jsonl", 0, 10)],
        [("d.jsonl", 10, 15)],
    ]


def test_a_text_file_too_large_for_one_document_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DOCUMENT_BYTES", 3)
    with pytest.raises(UserError, match="one document"):
        list(cut_into_chunks([write(tmp_path / "a.txt", b"1234")], 10))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"', "broken JSON: Expecting ',' delimiter at column 1"),
        (b"[" * 100_000, "broken JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}", "broken JSON"),
        (b'["text"]', "a JSON list, not an object"),
        (b'{"body": "a"}', "no field 'text'"),
        (b'{"text": 3}', "field 'text' is int, not a string"),
        (b'{"text": null}', "field 'text' is NoneType"),
        (b'{"text": " \\n"}', "field 'text' is empty"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
        (b'{"text": "caf\xe9"}', "not UTF-8: byte 0xe9"),
        (b"   ", "empty line"),
    ],
)
def test_a_bad_line_is_described_and_its_neighbours_are_read(tmp_path: Path, line: bytes, problem: str) -> None:
    first, bad, last = records(tmp_path / "a.jsonl", b'{"text": "one"}\n' + line + b'\n{"text": "\\u00e9", "id": 1}\n')
    assert (first, last) == (TextRecord(1, text="one"), TextRecord(3, text="é"))
    assert bad.line == 2 and bad.text == "" and problem in bad.problem and "\n" not in bad.problem


def test_a_text_file_in_another_encoding_is_bad_at_its_line(tmp_path: Path) -> None:
    assert records(tmp_path / "a.py", b"one\ntwo\nna\xefve\n") == [TextRecord(3, problem="not UTF-8: byte 0xef")]


def test_a_text_file_is_one_document_with_its_line_ends(tmp_path: Path) -> None:
    assert records(tmp_path / "a.txt", b"one\r\ntwo\n\n") == [TextRecord(1, text="one\r\ntwo\n\n")]
    assert list(read_piece(FilePiece(str(tmp_path / "a.txt"), 0, 10, lines=False), "text"))[0].line == 1
