"""Empty columns of tables: Parquet and Arrow give an object every key that any row's object has, with null where this
row's has none. In a tool's description or a call's arguments a template would write these nulls.
"""

from typing import Any

from data_prep.messages import CALL_KEYS, CALL_PARTS, TOOL_KEYS

EMPTY_COLUMNS = "empty columns taken out of tools"  # with the count of conversations
DESCRIBED = (*TOOL_KEYS, *CALL_KEYS, *CALL_PARTS)  # keys of objects that a template writes as they are


def drop_empty_columns(row: Any) -> Any:
    """A row of a table without the nulls in objects that a template would write; all other nulls stay, and so do JSON
    texts, which a person wrote."""
    if isinstance(row, list):
        return [drop_empty_columns(part) for part in row]
    if not isinstance(row, dict):
        return row
    changed = {key: _without_nulls(found) for key, found in row.items() if key in DESCRIBED}
    lists = {key: drop_empty_columns(found) for key, found in row.items() if isinstance(found, list)}
    return {**row, **lists, **changed}


def _without_nulls(value: Any) -> Any:
    """A value of JSON without the null entries of its objects; nulls in lists stay."""
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
