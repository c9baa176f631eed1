"""Every reader of JSON objects goes through one function: what it takes, and what it refuses in one line."""

from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.json_file import read_json_object

BROKEN = {
    "cut": b'{"a": ',
    "empty": b"",
    "no object": b"[1]",
    "not UTF-8": b'{"a": "caf\xe9"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "marked": b'\xef\xbb\xbf{"a": 1}',
    "deep": b'{"a":' * 100_000,
    "deep and closed": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "twice": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "NaN": b'{"a": NaN}',
    "infinite": b'{"a": 1e999}',
    "half a pair": b'{"a": "\\ud800"}',
    "too long a number": b'{"a": ' + b"1" * 10_000 + b"}",
    "zeros": b'{"a": "\x00\x00"}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_object_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json") as caught:
        read_json_object(tmp_path / "x.json", "an object")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None])
def test_a_folder_and_nothing_are_no_file(tmp_path: Path, make) -> None:
    make(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"no x\.json in .*; allowed: an object"):
        read_json_object(tmp_path / "x.json", "an object")


def test_an_object_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1, 2.5, null, "\u2028 caf\u00e9"], "b": {"a": true}}', encoding="utf-8")
    wanted = {"a": [1, 2.5, None, "\u2028 caf\u00e9"], "b": {"a": True}}
    assert read_json_object(tmp_path / "x.json", "an object") == wanted
