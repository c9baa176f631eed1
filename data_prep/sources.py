"""From paths to texts: which files are read, how they are cut into pieces of work, and what makes a line bad."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nld_train.errors import UserError

LINES = ".jsonl"
TEXT_KEY = "text"  # the field of a .jsonl line that holds its document
SUFFIXES = (
    *(LINES, ".txt", ".md", ".rst", ".tex"),
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".rs", ".go", ".java", ".kt", ".scala"),
    *(".js", ".jsx", ".ts", ".tsx", ".css", ".html", ".rb", ".php", ".pl", ".lua", ".jl", ".r", ".hs", ".ml"),
    *(".swift", ".sh", ".sql", ".cmake", ".toml", ".yaml", ".yml", ".proto"),
)
DOCUMENT_BYTES = 1 << 30  # a text file is one document and is read whole


@dataclass(frozen=True)
class Piece:
    """A stretch of one input file, in bytes: a whole text file, or the lines of a .jsonl that begin within it."""

    path: str
    start: int
    end: int
    lines: bool

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Record:
    """One line of a .jsonl, or one text file: its text, or what is wrong with it."""

    line: int  # 1 at the start of the piece
    text: str = ""
    problem: str = ""


def find_files(inputs: Sequence[str | Path], suffixes: Sequence[str]) -> list[Path]:
    """The input files, and the files with one of `suffixes` in the input folders, in the order given, folders sorted.

    Hidden files and folders inside a folder are left out. Raises UserError for an input that is missing, unreadable,
    given twice, or a folder without such files.
    """
    for suffix in suffixes:
        if not suffix.startswith("."):
            raise UserError(f"suffix {suffix!r}", "suffixes that begin with a dot", f"write .{suffix}")
    files = [path for name in inputs for path in expand(Path(name), suffixes)]
    seen: set[Path] = set()
    for path in files:
        place = path.resolve()
        if place in seen:
            raise UserError(f"{path} is among the inputs twice", "every file once", "leave one of the inputs out")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} cannot be read", "files with read permission", "change its permissions")
        seen.add(place)
    return files


def expand(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The path itself if it is a file, else the files with one of `suffixes` below it."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder {path}", "existing files and folders", "check the path")
    wanted = {suffix.lower() for suffix in suffixes}
    found = [file for file in walk(path) if file.suffix.lower() in wanted]
    if not found:
        raise UserError(
            f"no file to read in {path}", f"files ending in {' '.join(suffixes)}", "name others by --suffix"
        )
    return found


def walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, onerror=refuse_folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield path


def refuse_folder(error: OSError) -> None:
    """os.walk would leave an unreadable folder out without a word."""
    raise UserError(f"{error.filename}: {error.strerror}", "folders with read permission", "change its permissions")


def cut(files: Sequence[Path], piece_bytes: int) -> Iterator[tuple[Piece, ...]]:
    """Cut files into chunks of work of about `piece_bytes`, in order: parts of large .jsonl, small files together.

    The documents, and so the output, do not depend on where the cuts fall.
    """
    chunk: list[Piece] = []
    size = 0
    for piece in pieces(files, piece_bytes):
        if chunk and size + piece.size > piece_bytes:
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(piece)
        size += piece.size
    if chunk:
        yield tuple(chunk)


def pieces(files: Sequence[Path], piece_bytes: int) -> Iterator[Piece]:
    for path in files:
        size = path.stat().st_size
        if path.suffix.lower() == LINES:
            for start in range(0, size, piece_bytes):
                yield Piece(str(path), start, min(start + piece_bytes, size), lines=True)
        elif size > DOCUMENT_BYTES:
            raise UserError(
                f"{path} has {size} bytes and would be one document",
                f"text files of at most {DOCUMENT_BYTES} bytes",
                "write its documents into a .jsonl, one per line",
            )
        else:
            yield Piece(str(path), 0, size, lines=False)


def read_piece(piece: Piece, text_key: str) -> Iterator[Record]:
    """The documents and bad lines of a piece, in order."""
    if not piece.lines:
        yield parse_text(Path(piece.path).read_bytes())
        return
    for number, line in enumerate(read_lines(piece), start=1):
        yield parse_line(line, number, text_key)


def read_lines(piece: Piece) -> Iterator[bytes]:
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


def parse_text(data: bytes) -> Record:
    try:
        return Record(1, text=data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Record(1 + data.count(b"\n", 0, error.start), problem=f"not UTF-8: byte 0x{data[error.start]:02x}")


def parse_line(line: bytes, number: int, text_key: str) -> Record:
    """The text of one .jsonl line, or why it has none."""
    if not line.strip():
        return Record(number, problem="empty line")
    decoded = parse_text(line)
    if decoded.problem:
        return Record(number, problem=decoded.problem)
    try:
        value = json.loads(decoded.text)
    except json.JSONDecodeError as error:
        return Record(number, problem=f"broken JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number too long to read, brackets too deep
        return Record(number, problem=f"broken JSON: {error}")
    return read_field(value, number, text_key)


def read_field(value: object, number: int, text_key: str) -> Record:
    if not isinstance(value, dict):
        return Record(number, problem=f"a JSON {type(value).__name__}, not an object")
    if text_key not in value:
        return Record(number, problem=f"no field {text_key!r}")
    text = value[text_key]
    if not isinstance(text, str):
        return Record(number, problem=f"field {text_key!r} is {type(text).__name__}, not a string")
    if not text.strip():
        return Record(number, problem=f"field {text_key!r} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return Record(number, problem=f"field {text_key!r} holds half a surrogate pair")
    return Record(number, text=text)
