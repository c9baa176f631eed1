import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from data_prep import file_forms
from data_prep.file_forms import form_of, split_suffix
from data_prep.sources import TextRecord, cut_into_chunks, read_piece
from nld_train.errors import UserError


def zstd(data: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
TEXTS = ["one", "Grüße\n世界", '"quoted", with a comma', "x" * 300_000]
ROWS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
AS_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FORMS = {
    "a.jsonl": AS_LINES,
    "a.ndjson": AS_LINES,
    "a.json": AS_LINES,
    "list.json": json.dumps(ROWS),
    "indented.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "a.txt": TEXTS[1],
}


def records(path: Path, piece_bytes: int = 1 << 20) -> list[TextRecord]:
    return [
        record
        for chunk in cut_into_chunks([path], piece_bytes)
        for piece in chunk
        for record in read_piece(piece, "text")
    ]


@pytest.mark.parametrize("suffix", ["", *PACK])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read_plain_and_compressed(tmp_path: Path, name: str, suffix: str) -> None:
    data = FORMS[name].encode()
    path = tmp_path / (name + suffix)
    path.write_bytes(PACK[suffix](data) if suffix else data)
    texts = TEXTS[1:2] if name == "a.txt" else TEXTS
    assert [record.text for record in records(path)] == texts
    assert [record.text for record in records(path, piece_bytes=10)] == texts


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_files_joined_by_cat_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix](b'{"text": "one"}\n') + PACK[suffix](b'{"text": "two"}\n\n'))
    assert [record.text for record in records(path)] == ["one", "two"]


@pytest.mark.parametrize("suffix", PACK)
def test_a_compressed_file_that_is_cut_short_is_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix](AS_LINES.encode())[:-9])
    with pytest.raises(UserError, match="cannot be unpacked") as error:
        records(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json", "a.parquet", "a.csv", "a"])
@pytest.mark.parametrize("suffix", PACK)
def test_a_compressed_file_under_a_wrong_name_is_said_as_such(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / name
    path.write_bytes(PACK[suffix](AS_LINES.encode()))
    with pytest.raises(UserError, match="a compressed file") as error:
        records(path)
    assert f"name it {name}{suffix}, or unpack it" in str(error.value)


def archive(kind: str, data: bytes) -> bytes:
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as packed:
            packed.writestr("a.txt", data)
    else:
        with tarfile.open(fileobj=out, mode="w") as packed:
            packed.addfile(tarfile.TarInfo("a.txt"), io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl.gz", AS_LINES.encode(), r"a\.jsonl\.gz is not gzip"),
        ("a.jsonl.gz", zstd(b"x"), r"a\.jsonl\.gz is not gzip, but zstd"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "holds gzip within gzip"),
        ("a.txt.gz", gzip.compress(archive("tar", b"x"), mtime=0), "holds a tar archive within gzip"),
        ("a.jsonl", archive("zip", b"x"), r"a\.jsonl is a zip archive"),
        ("a.txt", archive("tar", b"x"), r"a\.txt is a tar archive"),
        ("a.jsonl", b"PAR1....", r"a\.jsonl is Parquet.*named \.parquet"),
        ("a.txt", b"ARROW1..", r"a\.txt is Arrow"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), "compressed within"),
    ],
)
def test_first_bytes_that_contradict_the_name_are_one_line(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said) as error:
        records(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_text_may_begin_with_the_letters_of_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("BZh9 is how bzip2 begins, PAR is golf")
    assert records(tmp_path / "a.txt")[0].text.startswith("BZh9")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"text": "a"}\n{"text": "b"}', "lines"),
        ('\n\n  {"text": "a"}', "lines"),
        ('{"text": "a"', "lines"),  # a broken line is a bad line, not a broken file
        ("", "lines"),
        ("[]", "values"),
        ("\n [\n", "values"),
        ('{\n "text": "a"\n}', "values"),
    ],
)
def test_a_json_file_holds_lines_or_one_list_or_spread_objects(tmp_path: Path, text: str, form: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert form_of(tmp_path / "a.json") == form


def test_objects_spread_over_lines_are_records(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS[0], indent=1) + "\n" + json.dumps(ROWS[1], indent=1))
    assert [record.text for record in records(tmp_path / "a.json")] == TEXTS[:2]


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 18])
def test_a_list_is_read_the_same_wherever_its_blocks_end(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_forms._JsonText, "BLOCK", block)
    values = [{"text": "é\\"}, 12.5, 1234567890123, None, "[]{}", [1, [2]], {}, True, -1e-7]
    for number, text in enumerate((json.dumps(values), json.dumps(values, indent=3), " [ ] ", "[12]")):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with file_forms.open_unpacked(path) as stream:
            assert list(file_forms.json_values(stream, path, 1 << 20)) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "a"}',
        '[{"text": "a"}, ',
        '[{"text": "a"} {"text": "b"}]',
        '[{"text": "a"},, 1]',
        "[1] 2",
        "[nope]",
        "[",
    ],
)
def test_a_broken_list_is_one_line_and_never_a_part_of_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="broken JSON") as error:
        records(tmp_path / "a.json")
    assert "a.json" in str(error.value) and "\n" not in str(error.value)


def test_an_element_that_is_no_end_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "' + "x" * 5_000_000)
    with file_forms.open_unpacked(path) as stream, pytest.raises(UserError, match="broken JSON"):
        list(file_forms.json_values(stream, path, 1000))


def test_suffixes_are_told_apart() -> None:
    assert split_suffix("a.b.JSONL.gz") == (".jsonl", ".gz")
    assert split_suffix(Path("x/a.txt")) == (".txt", "") and split_suffix("a.gz") == ("", ".gz")
    assert split_suffix("README") == ("", "")
