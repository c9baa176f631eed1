"""Rows of files that are tables: Parquet, Arrow as the datasets library saves it, and CSV."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.file_forms import open_unpacked, split_suffix
from nld_train.errors import UserError

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

TABLE_ROWS = 256  # that are Python objects at a time
TABLE_BYTES = 1 << 26  # of such rows, about
FIELD_CHARACTERS = 1 << 30  # of one field of a .csv


@contextmanager
def _said_of(path: Path, kind: str) -> Iterator[None]:
    from pyarrow import ArrowException  # here, not above: few runs need it

    try:
        yield
    except (ArrowException, OSError) as error:
        got = f"{path} is not {kind}: {' '.join(str(error).split())}"
        raise UserError(got, f"a whole {kind} file", "download or write it again") from error


def open_table(path: Path) -> "ParquetFile":
    """A Parquet file. Raises UserError where it is none."""
    from pyarrow.parquet import ParquetFile

    with _said_of(path, "Parquet"):
        return ParquetFile(path)


def parquet_rows(path: Path, group: int, column: str | None) -> Iterator[object]:
    """The rows of one row group as dicts; of one column alone where the file has it."""
    table = open_table(path)
    with _said_of(path, "Parquet"):
        chosen = _only(table.schema_arrow, column)
        found = table.metadata.row_group(group)
        at_a_time = _rows_at_a_time(found.num_rows, found.total_byte_size)
        for batch in table.iter_batches(at_a_time, row_groups=[group], columns=chosen):
            yield from batch.to_pylist()


def arrow_rows(path: Path, column: str | None) -> Iterator[object]:
    """The rows of an Arrow file or stream as dicts; of one column alone where the file has it."""
    with _said_of(path, "Arrow"):
        for batch in _arrow_batches(path):
            chosen = _only(batch.schema, column)
            narrow = batch if chosen is None else batch.select(chosen)
            at_a_time = _rows_at_a_time(narrow.num_rows, narrow.nbytes)
            for start in range(0, narrow.num_rows, at_a_time):
                yield from narrow.slice(start, at_a_time).to_pylist()


def _rows_at_a_time(rows: int, size: int) -> int:
    """How many of so many rows of so many bytes become Python objects together: fewer where they hold images."""
    return max(1, min(TABLE_ROWS, TABLE_BYTES * rows // max(size, 1)))


def _arrow_batches(path: Path) -> "Iterator[RecordBatch]":
    from pyarrow import ArrowInvalid, ipc, memory_map

    with memory_map(str(path)) as stream:
        try:
            reader = ipc.open_stream(stream)  # what the datasets library writes
        except ArrowInvalid:
            stream.seek(0)
            file = ipc.open_file(stream)
            yield from (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            yield from reader


def _only(schema: "Schema", column: str | None) -> list[str] | None:
    return [column] if column is not None and column in schema.names else None


def csv_rows(path: Path) -> Iterator[object]:
    """The rows of a .csv (commas) or .tsv (tabs) as dicts by the names in its first row.

    A row that is no UTF-8 comes as a UnicodeDecodeError, one with other fields than the first row as a ValueError.
    Raises UserError for quotes that do not close: nothing behind them can be read.
    """
    csv.field_size_limit(FIELD_CHARACTERS)
    delimiter = "\t" if split_suffix(path.name)[0] == ".tsv" else ","
    with open_unpacked(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
            for fields in filter(None, rows):  # a blank line is no row
                yield _csv_row(names, fields)
        except csv.Error as error:
            got = f"{path}, row {rows.line_num}: {error}"
            raise UserError(got, "CSV with closed quotes, doubled within a field", "write the file again") from error


def _csv_row(names: list[str], fields: list[str]) -> object:
    try:
        "".join(fields).encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        return error
    if len(fields) != len(names):
        return ValueError(f"{len(fields)} fields, the first row has {len(names)}")
    return dict(zip(names, fields, strict=True))
