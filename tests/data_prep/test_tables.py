from pathlib import Path

import pyarrow
import pytest
from pyarrow import feather, ipc, parquet

from data_prep import sources, tables
from data_prep.sources import TextRecord, cut_into_chunks, find_files, read_piece, read_values, search_inputs
from nld_train.errors import UserError

TEXTS = [f"row {number}: Grüße" for number in range(1000)]
TABLE = pyarrow.table({"id": list(range(1000)), "text": TEXTS})


def records(path: Path) -> list[TextRecord]:
    return [
        record for chunk in cut_into_chunks([path], 1 << 20) for piece in chunk for record in read_piece(piece, "text")
    ]


def write_stream(path: Path, table: pyarrow.Table) -> Path:
    """As the datasets library writes its shards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    return path


def test_rows_of_parquet_and_arrow_are_documents(tmp_path: Path) -> None:
    parquet.write_table(TABLE, tmp_path / "a.parquet", row_group_size=301)
    write_stream(tmp_path / "stream.arrow", TABLE)
    feather.write_feather(TABLE, tmp_path / "file.arrow")
    for name in ("a.parquet", "stream.arrow", "file.arrow"):
        assert [record.text for record in records(tmp_path / name)] == TEXTS, name


def test_whole_rows_come_without_a_column(tmp_path: Path) -> None:
    """Conversations need every field."""
    (piece,) = next(cut_into_chunks([write_stream(tmp_path / "a.arrow", TABLE)], 1 << 20))
    assert next(read_values(piece)).value == {"id": 0, "text": TEXTS[0]}
    assert next(read_values(piece, "text")).value == {"text": TEXTS[0]}


def test_a_column_that_is_missing_is_said_with_those_that_are_there(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    assert records(tmp_path / "a.parquet")[0].problem == "no field 'text': fields id, body"


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("data", [b"no table at all", b""])
def test_a_file_that_is_no_table_is_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="is not (Parquet|Arrow)") as error:
        records(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_that_is_cut_short_is_one_line(tmp_path: Path, name: str) -> None:
    write = parquet.write_table if name == "a.parquet" else (lambda table, path: write_stream(path, table))
    write(TABLE, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-3000])
    with pytest.raises(UserError, match="is not (Parquet|Arrow)"):
        records(tmp_path / name)


def saved_dataset(folder: Path) -> Path:
    """As `Dataset.save_to_disk` leaves it, with a cache file of a later `map` beside it."""
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    write_stream(folder / names[0], TABLE.slice(0, 500))
    write_stream(folder / names[1], TABLE.slice(500))
    write_stream(folder / "cache-1f2e.arrow", TABLE)
    listed = ", ".join(f'{{"filename": "{name}"}}' for name in names)
    (folder / "state.json").write_text(f'{{"_data_files": [{listed}], "_split": "train"}}')
    (folder / "dataset_info.json").write_text('{"features": {}}')
    return folder


@pytest.mark.parametrize("suffixes", [sources.SUFFIXES, sources.RECORD_SUFFIXES])
def test_of_a_saved_dataset_its_own_files_are_read(tmp_path: Path, suffixes: tuple[str, ...]) -> None:
    saved_dataset(tmp_path / "saved" / "train")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    found = search_inputs([tmp_path / "saved"], suffixes)
    assert [record.text for path in found.files for record in records(path)] == TEXTS
    assert found.unread == {".arrow that its dataset does not name": 1, "notes of a saved dataset": 3}


def test_a_saved_dataset_with_a_missing_file_is_refused(tmp_path: Path) -> None:
    (saved_dataset(tmp_path) / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match="data-00001-of-00002"):
        find_files([tmp_path], sources.SUFFIXES)


def test_rows_of_csv_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('id,text\r\n1,plain\r\n2,"a, ""b""\nc"\r\n\r\n3,Grüße\r\n\r\n'.encode())
    assert [record.text for record in records(tmp_path / "a.csv")] == ["plain", 'a, "b"\nc', "Grüße"]
    (tmp_path / "a.tsv").write_text("id\ttext\n1\ta, b\n")
    assert [record.text for record in records(tmp_path / "a.tsv")] == ["a, b"]


def test_bad_rows_of_csv_are_described_and_their_neighbours_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,one\n2\n3,caf\xe9\n4,\n5,five\n")
    assert [record.text or record.problem for record in records(tmp_path / "a.csv")] == [
        "one",
        "a row of other fields: 1 fields, the first row has 2",
        "not UTF-8: byte 0xe9",
        "field 'text' is empty",
        "five",
    ]


def test_quotes_that_do_not_close_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"open\n2,two\n')
    with pytest.raises(UserError, match=r"a\.csv, row 3: unexpected end of data"):
        records(tmp_path / "a.csv")


def test_a_long_field_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 1_000_000 + "\n")
    assert len(records(tmp_path / "a.csv")[0].text) == 1_000_000


def test_large_rows_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"image": bytes([number]) * 1000} for number in range(20)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", use_dictionary=False)
    stream = write_stream(tmp_path / "a.arrow", pyarrow.Table.from_pylist(rows))
    sizes = []
    whole = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        parquet.ParquetFile,
        "iter_batches",
        lambda file, size, **options: sizes.append(size) or whole(file, size, **options),
    )
    for most in (tables.TABLE_BYTES, 5000, 1):
        monkeypatch.setattr(tables, "TABLE_BYTES", most)
        assert list(tables.parquet_rows(tmp_path / "a.parquet", 0, None)) == rows
        assert list(tables.arrow_rows(stream, None)) == rows
    assert sizes[0] == tables.TABLE_ROWS and 2 <= sizes[1] <= 5 and sizes[2] == 1
