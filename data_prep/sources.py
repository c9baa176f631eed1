"""From paths to texts: which files are read, how they are cut into pieces of work, and what makes a line bad."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.file_forms import (
    BYTE_ORDER_MARK,
    COMPRESSIONS,
    JSON,
    RECORD_SUFFIXES,
    Form,
    form_of,
    json_values,
    open_unpacked,
    split_suffix,
)
from data_prep.file_forms import LINES as LINES  # for prepare_chat
from data_prep.file_forms import TABLE as TABLE
from data_prep.tables import arrow_rows, csv_rows, open_table, parquet_rows
from nld_train.errors import UserError

TEXT_KEY = "text"  # the field of a record that holds its document
TEXT_SUFFIXES = (
    *(".txt", ".md", ".rst", ".tex"),
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".rs", ".go", ".java", ".kt", ".scala"),
    *(".js", ".jsx", ".ts", ".tsx", ".css", ".html", ".rb", ".php", ".pl", ".lua", ".jl", ".r", ".hs", ".ml"),
    *(".swift", ".sh", ".sql", ".cmake", ".toml", ".yaml", ".yml", ".proto"),
)
# In folders these are as often settings or notes as data: they are taken where their first record has the text key.
SHARED_SUFFIXES = (JSON, ".csv", ".tsv")
SUFFIXES = (*(suffix for suffix in RECORD_SUFFIXES if suffix not in SHARED_SUFFIXES), *TEXT_SUFFIXES)
DATASET_NOTES = ("dataset_info.json", "state.json", "dataset_dict.json")  # beside the data of a saved dataset
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
DOCUMENT_BYTES = 1 << 30  # a text file is one document and is read whole; so is a value of a .json list


@dataclass(frozen=True)
class FilePiece:
    """A stretch of one input file, in bytes: a whole file, the lines that begin within it, or a row group of a
    .parquet, which stands for an equal share of the file's bytes."""

    path: str
    start: int
    end: int
    form: Form
    group: int | None = None  # of a .parquet

    @property
    def holds_records(self) -> bool:
        """Whether it holds lines, values or rows, and not one text."""
        return self.form != "text"

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class TextRecord:
    """One line, value or row, or one text file: its text, or what is wrong with it."""

    line: int  # 1 at the start of the piece
    text: str = ""
    problem: str = ""  # what stands before a colon is the reason that is counted


@dataclass(frozen=True)
class RecordValue:
    """One line, value or row of a file of records: what it holds, or what is wrong with it."""

    line: int  # 1 at the start of the piece
    value: object = None
    problem: str = ""
    from_table: bool = False  # Parquet or Arrow: its objects have the keys of all rows, with nulls


@dataclass(frozen=True)
class Found:
    """The files to read, and what stood beside them in the input folders: kind -> how many."""

    files: list[Path]
    unread: dict[str, int]


def find_files(inputs: Sequence[str | Path], suffixes: Sequence[str]) -> list[Path]:
    """The files of `search_inputs`."""
    return search_inputs(inputs, suffixes).files


def search_inputs(inputs: Sequence[str | Path], suffixes: Sequence[str], text_key: str | None = None) -> Found:
    """The input files, and the files with one of `suffixes` in the input folders, in the order given, folders sorted.

    A compressed file counts by the suffix before that of its compression. With `text_key`, files of SHARED_SUFFIXES
    are taken from folders too where their first record has this key. Of a dataset saved by the datasets library, the
    files that its state.json names are taken, in that order. Hidden files, links to folders and all else in a folder
    is left out and counted. Raises UserError for an input that is missing, unreadable, given twice, or a folder without
    such files.
    """
    for suffix in suffixes:
        if not suffix.startswith("."):
            raise UserError(f"suffix {suffix!r}", "suffixes that begin with a dot", f"write .{suffix}")
    files: list[Path] = []
    unread: Counter[str] = Counter()
    for name in inputs:
        files += _expand(Path(name), {suffix.lower() for suffix in suffixes}, text_key, unread)
    seen: set[Path] = set()
    for path in files:
        place = path.resolve()
        if place in seen:
            raise UserError(f"{path} is among the inputs twice", "every file once", "leave one of the inputs out")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} cannot be read", "files with read permission", "change its permissions")
        seen.add(place)
    return Found(files, dict(sorted(unread.items())))


def _expand(path: Path, suffixes: set[str], text_key: str | None, unread: Counter[str]) -> list[Path]:
    """The path itself if it is a file, else the files below it that are read; the others are counted in `unread`."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder {path}", "existing files and folders", "check the path")
    found: list[Path] = []
    here: Counter[str] = Counter()
    for folder, names in _walk(path, here):
        saved = _saved_dataset(folder) if DATASET_NOTES[1] in names else []
        found += saved
        for file in (folder / name for name in names):
            reason = "" if file in saved else _why_unread(file, suffixes, text_key, bool(saved))
            if reason:
                here[reason] += 1
            elif file not in saved:
                found.append(file)
    if not found:
        there = ", ".join(f"{count} {kind}" for kind, count in sorted(here.items())) or "nothing"
        got = f"no file to read in {path}, which holds {there}"
        raise UserError(got, f"files ending in {' '.join(sorted(suffixes))}", "name others by --suffix")
    unread.update(here)
    return found


def _why_unread(file: Path, suffixes: set[str], text_key: str | None, beside_saved: bool) -> str:
    """Why a file of a folder is not read: its kind; "" where it is read."""
    suffix, compression = split_suffix(file.name)
    if not file.is_file():
        return "no plain file"
    if file.name in DATASET_NOTES:
        return "notes of a saved dataset"
    if beside_saved and suffix == ".arrow":
        return ".arrow that its dataset does not name"
    if suffixes & {suffix, suffix + compression}:
        return ""
    if text_key is not None and suffix in SHARED_SUFFIXES:
        return "" if _first_has(file, text_key) else f"{suffix} without {text_key!r}"
    return suffix + compression or "without a suffix"


def _saved_dataset(folder: Path) -> list[Path]:
    """The data files that the state.json of a saved dataset names, in order; none where it is no such file."""
    try:
        state = json.loads((folder / DATASET_NOTES[1]).read_text(encoding="utf-8"))
    except ValueError:
        return []
    named = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(named, list):
        return []
    files = [folder / entry["filename"] for entry in named]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{folder}: no file {missing[0].name}", "a whole saved dataset", "copy the folder again")
    return files


def _first_has(file: Path, text_key: str) -> bool:
    """Whether the first record of a file is an object with this key."""
    try:
        first = next((value for piece in file_pieces([file], DOCUMENT_BYTES) for value in read_values(piece)), None)
    except UserError:  # broken, or of another kind than its name: then it is counted as not read
        return False
    return first is not None and isinstance(first.value, dict) and text_key in first.value


def _walk(folder: Path, unread: Counter[str]) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below one with the names of its files, sorted; what is hidden or lies behind a link is counted."""
    for root, folders, names in os.walk(folder, onerror=_refuse_folder):
        hidden = [name for name in folders if name.startswith(".")]
        links = [name for name in folders if name not in hidden and Path(root, name).is_symlink()]
        folders[:] = sorted(set(folders) - set(hidden) - set(links))
        shown = sorted(name for name in names if not name.startswith("."))
        counts = {
            "hidden folders": len(hidden),
            "links to folders": len(links),
            "hidden files": len(names) - len(shown),
        }
        unread.update({kind: count for kind, count in counts.items() if count})
        yield Path(root), shown


def _refuse_folder(error: OSError) -> None:
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
    """The pieces of every file, in order. Raises UserError where its first bytes contradict its name."""
    for path in files:
        size, form = path.stat().st_size, form_of(path)
        compressed = split_suffix(path.name)[1] in COMPRESSIONS
        if form == "lines" and not compressed:
            for start in range(0, size, piece_bytes):
                yield FilePiece(str(path), start, min(start + piece_bytes, size), form)
        elif form == "parquet":
            groups = open_table(path).metadata.num_row_groups
            for group in range(groups):
                yield FilePiece(str(path), size * group // groups, size * (group + 1) // groups, form, group)
        elif form == "text" and size > DOCUMENT_BYTES:
            raise _too_large(path)
        else:
            yield FilePiece(str(path), 0, size, form)


def _too_large(path: Path) -> UserError:
    return UserError(
        f"{path} has more than {DOCUMENT_BYTES} bytes and would be one document",
        f"text files of at most {DOCUMENT_BYTES} bytes",
        "write its documents into a .jsonl, one per line",
    )


def read_piece(piece: FilePiece, text_key: str) -> Iterator[TextRecord]:
    """The documents and bad lines of a piece, in order."""
    if not piece.holds_records:
        yield parse_text(_read_text(Path(piece.path)).removeprefix(BYTE_ORDER_MARK))
        return
    for found in read_values(piece, text_key):
        yield TextRecord(found.line, problem=found.problem) if found.problem else read_field(found, text_key)


def _read_text(path: Path) -> bytes:
    with open_unpacked(path) as stream:
        data = stream.read(DOCUMENT_BYTES + 1)
    if len(data) > DOCUMENT_BYTES:
        raise _too_large(path)
    return data


def read_values(piece: FilePiece, column: str | None = None) -> Iterator[RecordValue]:
    """The lines, values or rows of a piece of records, in order; of a table that has this column, it alone."""
    assert piece.holds_records, f"{piece.path} is one document"
    path = Path(piece.path)
    if piece.form == "lines":
        yield from _read_json_lines(piece)
        return
    if piece.form == "values":
        with open_unpacked(path) as stream:
            yield from (RecordValue(n, row) for n, row in enumerate(json_values(stream, path, DOCUMENT_BYTES), start=1))
        return
    if piece.form == "parquet":
        assert piece.group is not None, f"{piece.path}: a piece of a Parquet file is a row group"
        rows = parquet_rows(path, piece.group, column)
    else:
        rows = arrow_rows(path, column) if piece.form == "arrow" else csv_rows(path)
    for number, row in enumerate(rows, start=1):
        if isinstance(row, ValueError):
            yield RecordValue(number, problem=_row_problem(row))
        else:
            yield RecordValue(number, row, from_table=piece.form != "csv")


def _row_problem(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(error)
    return f"a row of other fields: {error}"


def _read_json_lines(piece: FilePiece) -> Iterator[RecordValue]:
    """Every line; a blank one is an error where another line follows it, and nothing at the end of the file."""
    blank: list[int] = []
    for number, line in enumerate(read_lines(piece), start=1):
        if not line.removeprefix(BYTE_ORDER_MARK).strip():
            blank.append(number)
            continue
        yield from (RecordValue(before, problem="empty line") for before in blank)
        blank.clear()
        yield parse_json_line(line, number)
    if blank and not _ends_blank(piece):
        yield from (RecordValue(before, problem="empty line") for before in blank)


def _ends_blank(piece: FilePiece) -> bool:
    """Whether nothing but white space follows a piece in its file."""
    if split_suffix(piece.path)[1]:
        return True  # a compressed file is one piece
    with open(piece.path, "rb") as stream:
        stream.seek(piece.end)
        while block := stream.read(1 << 20):
            if block.strip():
                return False
    return True


def read_lines(piece: FilePiece) -> Iterator[bytes]:
    """The lines whose first byte lies in the piece; the last one is read past its end."""
    with open_unpacked(Path(piece.path)) as stream:
        if split_suffix(piece.path)[1]:
            yield from stream
            return
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
        return TextRecord(1 + data.count(b"\n", 0, error.start), problem=_not_utf8(error))


def _not_utf8(error: UnicodeDecodeError) -> str:
    if error.start == 0 and error.object[:2] in UTF_16_MARKS:
        return "not UTF-8: UTF-16"
    return f"not UTF-8: byte 0x{error.object[error.start]:02x}"


def parse_json_line(line: bytes, number: int) -> RecordValue:
    """What one line of JSON holds, or why it holds nothing."""
    decoded = parse_text(line.removeprefix(BYTE_ORDER_MARK))
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
        return TextRecord(number, problem=f"no field {text_key!r}: fields {', '.join(map(str, value)) or 'none'}")
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
