"""From paths to texts: which files are read, how they are cut into pieces of work, and what makes a line bad."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nld_train.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

LINES, TABLE = ".jsonl", ".parquet"
TEXT_KEY = "text"  # the field of a .jsonl line that holds its document
SUFFIXES = (
    *(LINES, TABLE, ".txt", ".md", ".rst", ".tex"),
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".rs", ".go", ".java", ".kt", ".scala"),
    *(".js", ".jsx", ".ts", ".tsx", ".css", ".html", ".rb", ".php", ".pl", ".lua", ".jl", ".r", ".hs", ".ml"),
    *(".swift", ".sh", ".sql", ".cmake", ".toml", ".yaml", ".yml", ".proto"),
)
DOCUMENT_BYTES = 1 << 30  # a text file is one document and is read whole
TABLE_ROWS = 256  # of a Parquet file, read at a time


@dataclass(frozen=True)
class FilePiece:
    """A stretch of one input file, in bytes: a whole text file, the lines of a .jsonl that begin within it, or a row
    group of a .parquet, which stands for an equal share of the file's bytes."""

    path: str
    start: int
    end: int
    lines: bool  # it holds records: lines or rows
    group: int | None = None  # of a .parquet

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class TextRecord:
    """One line of a .jsonl, one row of a .parquet or one text file: its text, or what is wrong with it."""

    line: int  # 1 at the start of the piece
    text: str = ""
    problem: str = ""  # what stands before a colon is the reason that is counted


@dataclass(frozen=True)
class RecordValue:
    """One line of a .jsonl or one row of a .parquet: what it holds, or what is wrong with it."""

    line: int  # 1 at the start of the piece
    value: object = None
    problem: str = ""


def find_files(inputs: Sequence[str | Path], suffixes: Sequence[str]) -> list[Path]:
    """The input files, and the files with one of `suffixes` in the input folders, in the order given, folders sorted.

    Hidden files and folders inside a folder are left out. Raises UserError for an input that is missing, unreadable,
    given twice, or a folder without such files.
    """
    for suffix in suffixes:
        if not suffix.startswith("."):
            raise UserError(f"suffix {suffix!r}", "suffixes that begin with a dot", f"write .{suffix}")
    files = [path for name in inputs for path in expand_input(Path(name), suffixes)]
    seen: set[Path] = set()
    for path in files:
        place = path.resolve()
        if place in seen:
            raise UserError(f"{path} is among the inputs twice", "every file once", "leave one of the inputs out")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} cannot be read", "files with read permission", "change its permissions")
        seen.add(place)
    return files


def expand_input(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The path itself if it is a file, else the files with one of `suffixes` below it."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder {path}", "existing files and folders", "check the path")
    wanted = {suffix.lower() for suffix in suffixes}
    found = [file for file in walk_files(path) if file.suffix.lower() in wanted]
    if not found:
        raise UserError(
            f"no file to read in {path}", f"files ending in {' '.join(suffixes)}", "name others by --suffix"
        )
    return found


def walk_files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, onerror=refuse_folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield path


def refuse_folder(error: OSError) -> None:
    """os.walk would leave an unreadable folder out without a word."""
    raise UserError(f"{error.filename}: {error.strerror}", "folders with read permission", "change its permissions")


def cut_into_chunks(files: Sequence[Path], piece_bytes: int) -> Iterator[tuple[FilePiece, ...]]:
    """Cut files into chunks of work of about `piece_bytes`, in order: parts of large .jsonl, small files together.

    The documents, and so the output, do not depend on where the cuts fall.
    """
    chunk: list[FilePiece] = []
    size = 0
    for piece in file_pieces(files, piece_bytes):
        if chunk and size + piece.size > piece_bytes:
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(piece)
        size += piece.size
    if chunk:
        yield tuple(chunk)


def file_pieces(files: Sequence[Path], piece_bytes: int) -> Iterator[FilePiece]:
    for path in files:
        size = path.stat().st_size
        if path.suffix.lower() == LINES:
            for start in range(0, size, piece_bytes):
                yield FilePiece(str(path), start, min(start + piece_bytes, size), lines=True)
        elif path.suffix.lower() == TABLE:
            groups = open_table(path).metadata.num_row_groups
            for group in range(groups):
                yield FilePiece(str(path), size * group // groups, size * (group + 1) // groups, True, group)
        elif size > DOCUMENT_BYTES:
            raise UserError(
                f"{path} has {size} bytes and would be one document",
                f"text files of at most {DOCUMENT_BYTES} bytes",
                "write its documents into a .jsonl, one per line",
            )
        else:
            yield FilePiece(str(path), 0, size, lines=False)


def read_piece(piece: FilePiece, text_key: str) -> Iterator[TextRecord]:
    """The documents and bad lines of a piece, in order."""
    if not piece.lines:
        yield parse_text(Path(piece.path).read_bytes())
        return
    for found in read_values(piece):
        yield TextRecord(found.line, problem=found.problem) if found.problem else read_field(found, text_key)


def read_values(piece: FilePiece) -> Iterator[RecordValue]:
    """The lines or rows of a piece of records, in order."""
    assert piece.lines, f"{piece.path} is one document"
    if piece.group is None:
        yield from (parse_json_line(line, number) for number, line in enumerate(read_lines(piece), start=1))
    else:
        table = open_table(Path(piece.path))
        batches = table.iter_batches(TABLE_ROWS, row_groups=[piece.group])
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from (RecordValue(number, row) for number, row in enumerate(rows, start=1))


def open_table(path: Path) -> "ParquetFile":
    """A Parquet file. Raises UserError where it is none."""
    from pyarrow import ArrowInvalid  # type: ignore[import-untyped]  # here, not above: few runs need it
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except ArrowInvalid as error:
        got = f"{path} is not Parquet: {' '.join(str(error).split())}"
        raise UserError(got, "a whole Parquet file", "download or write it again") from error


def read_lines(piece: FilePiece) -> Iterator[bytes]:
    """The lines whose first byte lies in the piece; the last one is read past its end."""
    with open(piece.path, "rb") as stream:
        position = piece.start
        if position > 0:
            stream.seek(position - 1)  # one byte early: a line end there means that the piece begins with a line
            position += len(stream.readline()) - 1
        while position < piece.end:
            line = stream.readline()
            if not line:
                return
            position += len(line)
            yield line


def parse_text(data: bytes) -> TextRecord:
    try:
        return TextRecord(1, text=data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return TextRecord(1 + data.count(b"\n", 0, error.start), problem=f"not UTF-8: byte 0x{data[error.start]:02x}")


def parse_json_line(line: bytes, number: int) -> RecordValue:
    """What one .jsonl line holds, or why it holds nothing."""
    if not line.strip():
        return RecordValue(number, problem="empty line")
    decoded = parse_text(line)
    if decoded.problem:
        return RecordValue(number, problem=decoded.problem)
    try:
        return RecordValue(number, json.loads(decoded.text))
    except json.JSONDecodeError as error:
        return RecordValue(number, problem=f"broken JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number too long to read, brackets too deep
        return RecordValue(number, problem=f"broken JSON: {error}")


def read_field(found: RecordValue, text_key: str) -> TextRecord:
    """The text under a key, or why there is none."""
    value, number = found.value, found.line
    if not isinstance(value, dict):
        return TextRecord(number, problem=f"a JSON {type(value).__name__}, not an object")
    if text_key not in value:
        return TextRecord(number, problem=f"no field {text_key!r}")
    text = value[text_key]
    if not isinstance(text, str):
        return TextRecord(number, problem=f"field {text_key!r} is {type(text).__name__}, not a string")
    if not text.strip():
        return TextRecord(number, problem=f"field {text_key!r} is empty")
    if not is_unicode(text):
        return TextRecord(number, problem=f"field {text_key!r} holds half a surrogate pair")
    return TextRecord(number, text=text)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can spell half a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
