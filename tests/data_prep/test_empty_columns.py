import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pyarrow import ipc

from data_prep.empty_columns import EMPTY_COLUMNS, drop_empty_columns
from nld_train.data.manifest import read_manifest


def row_with_call(tool: str, names: tuple[str, ...]) -> dict[str, Any]:
    """A conversation in which one tool is called with these arguments."""
    properties = {name: {"type": "string"} for name in names}
    described = {"name": tool, "description": f"tells {tool}", "parameters": {"properties": properties}}
    call = {"type": "function", "function": {"name": tool, "arguments": dict.fromkeys(names, "x")}}
    return {
        "tools": [{"type": "function", "function": described}],
        "messages": [
            {"role": "user", "content": "now?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": '{"kept": null}'},
            {"role": "assistant", "content": "so"},
        ],
    }


TOOLS = {"weather": ("city",), "price": ("unit", "day"), "both": ("city", "unit", "day")}
ROWS = [row_with_call(tool, names) for tool, names in TOOLS.items()]


def write_forms(folder: Path) -> dict[str, Path]:
    """The rows as lines, as Parquet and as Arrow."""
    paths = {name: folder / f"a.{name}" for name in ("jsonl", "parquet", "arrow")}
    table = pyarrow.Table.from_pylist(ROWS)
    assert table.to_pylist() != ROWS, "the table has no empty columns"
    paths["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pyarrow.parquet.write_table(table, paths["parquet"])
    with ipc.new_stream(paths["arrow"], table.schema) as writer:
        writer.write_table(table)
    return paths


def test_tools_of_tables_are_those_of_lines_and_the_difference_is_said(
    tmp_path: Path, tokenizer: Path, nld: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = {}, {}
    for name, path in write_forms(tmp_path).items():
        prefix = tmp_path / "out" / name
        assert nld("data", "prepare-chat", path, "--tokenizer", tokenizer, "--output", prefix, "--workers", 1) == 0
        found[name] = Path(f"{prefix}.bin").read_bytes()
        said[name] = capsys.readouterr().out
        chat = read_manifest(prefix).chat
        assert chat is not None
        assert chat.losses == ({} if name == "jsonl" else {EMPTY_COLUMNS: 2}), name
    assert found["jsonl"] == found["parquet"] == found["arrow"]
    assert "empty columns taken out of tools: 2" in said["parquet"]
    assert "empty columns" not in said["jsonl"]


def test_nulls_that_a_person_wrote_stay(tmp_path: Path, tokenizer: Path, nld: Callable[..., int]) -> None:
    row = row_with_call("weather", ("city",))
    call = row["messages"][1]["tool_calls"][0]["function"]
    call["arguments"] = {"city": "x", "unit": None}
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps(row))
    call["arguments"] = json.dumps(call["arguments"])  # a JSON text in a column
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    written = []
    for name in ("a.jsonl", "a.parquet"):
        prefix = tmp_path / "out" / name
        assert nld("data", "prepare-chat", tmp_path / name, "--tokenizer", tokenizer, "--output", prefix) == 0
        written.append(Path(f"{prefix}.bin").read_bytes())
        chat = read_manifest(prefix).chat
        assert chat is not None and chat.losses == {}
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"city": "x"}
    (tmp_path / "b.jsonl").write_text(json.dumps(row))
    assert nld("data", "prepare-chat", tmp_path / "b.jsonl", "--tokenizer", tokenizer, "--output", tmp_path / "b") == 0
    assert written[0] == written[1] != Path(f"{tmp_path / 'b'}.bin").read_bytes()


def test_only_what_a_template_writes_loses_its_nulls() -> None:
    row = {"system": None, "tools": [{"name": "a", "more": None, "enum": [None, {"b": None}]}], "meta": {"tools": None}}
    assert drop_empty_columns(row) == {
        "system": None,
        "tools": [{"name": "a", "enum": [None, {}]}],
        "meta": {"tools": None},
    }
    turns = [{"role": "assistant", "content": None, "function_call": {"name": "a", "arguments": {"b": None}}}]
    cleaned = [{"role": "assistant", "content": None, "function_call": {"name": "a", "arguments": {}}}]
    assert drop_empty_columns({"messages": turns}) == {"messages": cleaned}
    assert drop_empty_columns(turns) == cleaned
