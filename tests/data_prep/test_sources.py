import base64
from collections import Counter
from pathlib import Path

import pytest

from data_prep import sources
from data_prep.sources import FilePiece, TextRecord, cut_into_chunks, find_files, read_lines, read_piece, search_inputs
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
        list(sources._walk(tmp_path / "gone", Counter()))


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
    assert list(read_piece(FilePiece(str(tmp_path / "a.txt"), 0, 10, "text"), "text"))[0].line == 1


BLANK_ENDS = [b"\n", b"\n\n\n", b"  \n", b"\t\r\n\r\n", b"   ", b"\n" * 30]


@pytest.mark.parametrize("end", BLANK_ENDS)
@pytest.mark.parametrize("piece_bytes", [3, 1 << 20])
def test_blank_lines_at_the_end_are_no_error_wherever_the_cuts_fall(
    tmp_path: Path, end: bytes, piece_bytes: int
) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": "two"}\n' + end)
    found = [
        record
        for chunk in cut_into_chunks([path], piece_bytes)
        for piece in chunk
        for record in read_piece(piece, "text")
    ]
    assert [(record.text, record.problem) for record in found] == [("one", ""), ("two", "")]


@pytest.mark.parametrize("blank", [b"\n", b"\n" * 30])
@pytest.mark.parametrize("piece_bytes", [3, 1 << 20])
def test_blank_lines_before_another_are_named(tmp_path: Path, blank: bytes, piece_bytes: int) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n' + blank + b'{"text": "two"}\n')
    found = [
        record
        for chunk in cut_into_chunks([path], piece_bytes)
        for piece in chunk
        for record in read_piece(piece, "text")
    ]
    assert [record.problem or record.text for record in found] == ["one", *["empty line"] * len(blank), "two"]


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("a.txt", MARK + b"hello", ["hello"]),
        ("a.txt", MARK, [""]),
        ("a.jsonl", MARK + b'{"text": "one"}\n{"text": "two"}', ["one", "two"]),
        ("a.jsonl", b'{"text": "one"}\n' + MARK + b'{"text": "two"}', ["one", "two"]),  # files joined by cat
        ("a.json", MARK + b'[{"text": "one"}, {"text": "two"}]', ["one", "two"]),
        ("a.json", MARK + b'{"text": "one"}\n', ["one"]),
        ("a.csv", MARK + b"text,id\none,1\n", ["one"]),
        ("a.txt", b"a\xef\xbb\xbfb", ["a\ufeffb"]),  # elsewhere it is text
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, data: bytes, texts: list[str]) -> None:
    assert [record.text for record in records(tmp_path / name, data)] == texts


def test_utf_16_is_named(tmp_path: Path) -> None:
    assert records(tmp_path / "a.txt", "hello".encode("utf-16"))[0].problem == "not UTF-8: UTF-16"


def test_what_a_folder_holds_beside_the_input_is_counted(tmp_path: Path) -> None:
    for name in ("a.md", "b.png", "c.PNG", "README", ".hidden", ".git/x", "d/e.jsonl.gz.part", "package.json"):
        write(tmp_path / "in" / name)
    write(tmp_path / "in" / "rows.json", b'{"text": "one"}\n')
    write(tmp_path / "in" / "table.csv", b"id,text\n1,one\n")
    write(tmp_path / "in" / "other.csv", b"id,body\n1,one\n")
    write(tmp_path / "far" / "x.md")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "broken.md").symlink_to(tmp_path / "nowhere")
    found = search_inputs([tmp_path / "in"], sources.SUFFIXES, "text")
    assert [path.name for path in found.files] == ["a.md", "rows.json", "table.csv"]
    assert found.unread == {
        ".csv without 'text'": 1,
        ".json without 'text'": 1,
        ".part": 1,
        ".png": 2,
        "hidden files": 1,
        "hidden folders": 1,
        "links to folders": 1,
        "no plain file": 1,
        "without a suffix": 1,
    }


def test_a_folder_without_anything_to_read_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.json"):
        write(tmp_path / name)
    with pytest.raises(UserError, match=r"which holds 1 \.json without 'text', 2 \.png"):
        search_inputs([tmp_path], sources.SUFFIXES, "text")


def test_compressed_files_of_a_folder_go_by_what_they_compress(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.zst", "c.png.gz", "d.gz", "e.txt.xz", "f.JSONL.BZ2"):
        write(tmp_path / name)
    names = [path.name for path in find_files([tmp_path], [".jsonl", ".txt"])]
    assert names == ["a.jsonl.gz", "b.jsonl.zst", "e.txt.xz", "f.JSONL.BZ2"]
    assert [path.name for path in find_files([tmp_path], [".jsonl.gz"])] == ["a.jsonl.gz"]


# Written by datatrove 0.10.1, JsonlWriter, for three documents.
DATATROVE = (
    "H4sICOLvCWsC/zAwMDAwLmpzb25sAE2MMQqAMBAEe19xbKViZ5e32JzmBEFFkosEQv7uNQG3WobZLVDJCocgmsJNL59JaKQZEw5vnFG70iRudLVyibJnZbiC"
    "FE6jGfUne9lp7/PglpssD8fY5pudfkhI5BV6AAAA"
)


def test_what_datatroves_jsonl_writer_writes_is_read(tmp_path: Path) -> None:
    texts = [record.text for record in records(tmp_path / "00000.jsonl.gz", base64.b64decode(DATATROVE))]
    assert texts == ["return value * 3", "a", "def f(x):\n    pass"]
