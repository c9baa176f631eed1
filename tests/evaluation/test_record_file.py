from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.evaluation.record_file import RecordFile, merge_record_files, read_records

IDENTITY = {"kind": "decode", "model": "demo/hf", "shard": None}


def record(key: str) -> dict:
    return {"key": key, "text": "naïve\u2028"}


def test_what_was_written_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "new" / "decode.jsonl"
    first = RecordFile(path, IDENTITY)
    first.append(record("a"))
    with path.open("a") as file:
        file.write('{"key": "b", "te')  # the write that the kill cut off
    again = RecordFile(path, IDENTITY)
    assert again.missing(["a", "b", "c"]) == ["b", "c"]
    again.append(record("b"))
    assert read_records(path) == (IDENTITY, [record("a"), record("b")])


def test_an_evaluation_that_found_nothing_stands_in_nobodys_way(tmp_path: Path) -> None:
    RecordFile(tmp_path / "decode.jsonl", IDENTITY)
    other = IDENTITY | {"model": "other/hf"}
    assert RecordFile(tmp_path / "decode.jsonl", other).records == {}
    assert read_records(tmp_path / "decode.jsonl") == (other, [])


def test_another_evaluation_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "decode.jsonl"
    RecordFile(path, IDENTITY).append(record("a"))
    with pytest.raises(UserError, match="model='demo/hf', here 'other/hf'"):
        RecordFile(path, IDENTITY | {"model": "other/hf"})
    assert len(read_records(path)[1]) == 1
    assert RecordFile(path, IDENTITY | {"model": "other/hf"}, overwrite=True).records == {}


@pytest.mark.parametrize("content", ['{"a": 1}\nno\n', "[1]\n", '{"a": 1}\n{"b": 2}\n', "torn"])
def test_files_of_another_kind_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError):
        read_records(tmp_path / "x.jsonl")


def test_parts_become_one_file_in_the_order_of_their_keys(tmp_path: Path) -> None:
    for number, keys in ((1, ["b", "d"]), (2, ["c", "a"])):
        part = RecordFile(tmp_path / f"{number}.jsonl", IDENTITY | {"shard": number})
        for key in keys:
            part.append(record(key))
    parts = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    assert merge_record_files(parts, tmp_path / "all.jsonl", False, lambda name: name != "shard") == 4
    identity, records = read_records(tmp_path / "all.jsonl")
    assert identity == {"kind": "decode", "model": "demo/hf"} and [one["key"] for one in records] == list("abcd")
    with pytest.raises(UserError, match="exists already"):
        merge_record_files(parts, tmp_path / "all.jsonl", False, lambda name: name != "shard")
    with pytest.raises(UserError, match="b stands in two parts"):
        merge_record_files([*parts, parts[0]], tmp_path / "all.jsonl", True, lambda name: name != "shard")
    with pytest.raises(UserError, match="is of another evaluation"):
        merge_record_files(parts, tmp_path / "all.jsonl", True, lambda name: True)
