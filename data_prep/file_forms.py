"""What a file holds, by its name and by its first bytes, and how its bytes are read."""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO, Literal, cast

from nld_train.errors import UserError

Form = Literal["text", "lines", "values", "parquet", "arrow", "csv"]

LINES, TABLE, JSON = ".jsonl", ".parquet", ".json"
FORMS: dict[str, Form] = {
    LINES: "lines",
    ".ndjson": "lines",
    JSON: "lines",  # or "values": the first bytes decide, see `form_of`
    TABLE: "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
}
RECORD_SUFFIXES = tuple(FORMS)  # files of records; every other file is one text
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAGIC = {  # first bytes: (what such a file is, the suffix that says so)
    b"\x1f\x8b": ("gzip", ".gz"),
    b"\x28\xb5\x2f\xfd": ("zstd", ".zst"),
    b"\xfd7zXZ\x00": ("xz", ".xz"),
    b"\x04\x22\x4d\x18": ("lz4", ""),
    b"PK\x03\x04": ("a zip archive", ""),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", ""),
    b"PAR1": ("Parquet", TABLE),
    b"ARROW1": ("Arrow", ".arrow"),
}
BZIP2_BLOCK = b"1AY&SY"  # stands behind "BZh" and a digit; the first three letters alone may begin a text
TAR, TAR_START = b"ustar", 257  # where a tar archive names itself
HEAD_BYTES = 512
FIRST_LINE_BYTES = 1 << 20
UNPACKING_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)  # BadGzipFile is an OSError, and pyarrow's are


def split_suffix(name: str | PurePath) -> tuple[str, str]:
    """The suffix that says what a file holds, and the one that says how it is compressed, or "".

    "part.JSONL.gz" gives (".jsonl", ".gz").
    """
    path = PurePath(str(name).lower())
    if path.suffix in COMPRESSIONS:
        return PurePath(path.stem).suffix, path.suffix
    return path.suffix, ""


def form_of(path: Path) -> Form:
    """What a file holds. Raises UserError where its first bytes belong to another kind of file than its name.

    A .json file holds one value per line, unless it begins with a list, or with an object that is spread over lines.
    """
    suffix, compression = split_suffix(path.name)
    form = FORMS.get(suffix, "text")
    _check_magic(path, form, compression)
    if suffix != JSON:
        return form
    with open_unpacked(path) as stream:
        first = next((line for line in _first_lines(stream) if line), b"")
    return "values" if first.startswith(b"[") or first == b"{" else "lines"


def _first_lines(stream: BinaryIO) -> Iterator[bytes]:
    start = BYTE_ORDER_MARK
    while line := stream.readline(FIRST_LINE_BYTES):
        yield line.removeprefix(start).strip()
        start = b""


def _check_magic(path: Path, form: Form, compression: str) -> None:
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    kind, suffix = magic_of(head)
    if not compression:
        if kind and kind.lower() != form:  # "Parquet" and "Arrow" are names of forms
            raise _misnamed(path, kind, suffix)
        return
    if form in ("parquet", "arrow"):
        got = f"{path}: a compressed {form} file"
        raise UserError(got, "the file as it was written: it is compressed within", "unpack it")
    name = COMPRESSIONS[compression]
    if head and suffix != compression:
        got = f"{path} is not {name}{f', but {kind}' if kind else ''}"
        raise UserError(got, f"{name} data under {compression}", "correct its name")
    with open_unpacked(path) as stream:
        kind, _ = magic_of(stream.read(HEAD_BYTES))
    if kind:
        raise UserError(f"{path} holds {kind} within {name}", "text or records within", "unpack it once")


def _misnamed(path: Path, kind: str, suffix: str) -> UserError:
    got = f"{path} is {kind}"
    if not suffix:
        return UserError(got, f"plain files, or {', '.join(COMPRESSIONS)} of them", "unpack it")
    if suffix in COMPRESSIONS:
        return UserError(
            f"{got}, a compressed file", "a name that says so", f"name it {path.name}{suffix}, or unpack it"
        )
    return UserError(got, f"{kind} files named {suffix}", f"name it {path.stem}{suffix}")


def magic_of(head: bytes) -> tuple[str, str]:
    """What a file is by its first bytes, and the suffix for it; ("", "") for anything that could be text."""
    if head[:3] == b"BZh" and head[4:10] == BZIP2_BLOCK:
        return "bzip2", ".bz2"
    if head[TAR_START:].startswith(TAR):
        return "a tar archive", ""
    return next((found for magic, found in MAGIC.items() if head.startswith(magic)), ("", ""))


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked. Raises UserError where they cannot be unpacked to the end."""
    compression = split_suffix(path.name)[1]
    if not compression:
        with path.open("rb") as stream:
            yield stream
        return
    try:
        with _unpacking(path, compression) as stream:
            yield stream
    except UNPACKING_ERRORS as error:
        got = f"{path} cannot be unpacked: {' '.join(str(error).split())}"
        raise UserError(got, f"a whole {compression} file", "download or write it again") from error


def _unpacking(path: Path, compression: str) -> BinaryIO:
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if compression == ".bz2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    if compression == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    from pyarrow import input_stream  # type: ignore[import-untyped]  # here, not above: few runs need it

    return cast(BinaryIO, io.BufferedReader(input_stream(str(path), compression="zstd"), 1 << 20))


def json_values(stream: BinaryIO, path: Path, most: int) -> Iterator[object]:
    """The elements of a JSON list, or the values of a file that holds one behind the other.

    A value of more than `most` characters, broken JSON and bytes that are no UTF-8 raise UserError: nothing behind
    such a place can be read.
    """
    text = _JsonText(stream, most)
    number = 0
    try:
        in_list = text.skip("[")
        more = not text.skip("]") if in_list else not text.at_end()
        while more:
            number += 1
            yield text.value()
            more = text.skip(",") if in_list else not text.at_end()
            if in_list and not more:
                text.demand("]")
        if not text.at_end():
            raise ValueError("something stands behind the end of the list")
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        got = f"{path}: broken JSON in or behind value {number}: {' '.join(str(error).split())}"
        raise UserError(got, "one JSON list, or one value per line", "repair the file, or write it again") from error


class _JsonText:
    """JSON text that is read as far as the next value needs it."""

    BLOCK = 1 << 18
    AFTER = (" ", "\t", "\r", "\n", ",", "]")  # what ends a number; without it, it may go on in what is not read yet

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self._stream = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._position, self._most = "", 0, most
        self._whole = False  # nothing is left in the stream

    def _more(self, count: int) -> None:
        read = self._stream.read(count)
        self._whole = not read
        self._text, self._position = self._text[self._position :] + read, 0

    def at_end(self) -> bool:
        """Skip white space; whether nothing follows."""
        while True:
            rest = len(self._text)
            while self._position < rest and self._text[self._position] in " \t\r\n":
                self._position += 1
            if self._position < rest or self._whole:
                return self._position == rest
            self._more(self.BLOCK)

    def skip(self, mark: str) -> bool:
        """Skip white space, and then this character if it is there; whether it was."""
        found = not self.at_end() and self._text[self._position] == mark
        self._position += found
        return found

    def demand(self, mark: str) -> None:
        if not self.skip(mark):
            raise ValueError("the list does not end" if self.at_end() else f"{mark!r} or ',' is expected")

    def value(self) -> object:
        if self.at_end():
            raise ValueError("the list does not end")
        count = self.BLOCK
        while True:
            try:
                value, end = self._decode(self._text, self._position)
            except json.JSONDecodeError:
                if self._whole or len(self._text) > self._most:
                    raise
            else:
                if self._whole or isinstance(value, dict | list | str) or self._text[end : end + 1] in self.AFTER:
                    self._position = end
                    return value
            self._more(count)
            count *= 2  # so that a long value is tried a few times only
