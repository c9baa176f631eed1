"""JSON files that hold an object."""

import json
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from nld_train.errors import UserError


def read_json_object(path: Path, allowed: str) -> dict[str, Any]:
    """A JSON file that holds an object. Raises: UserError."""
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}", allowed, "check the path")
    return parse_json_object(path.read_bytes(), str(path))


def parse_json_object(content: bytes, origin: str) -> dict[str, Any]:
    """The object that JSON text in UTF-8 holds. origin: where it stood. Raises: UserError for other content, for keys
    that stand twice, for NaN and infinite numbers, and for texts that no UTF-8 can hold."""
    try:
        parsed = json.loads(content.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{origin} is not JSON: {reason}", "a JSON object", "copy the file again") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{origin} holds no object", "a JSON object", "copy the file again")
    return parsed


def has_json_type(kind: object, value: object) -> bool:
    """Whether a value of JSON is what a field of this type holds: text, a number, true or false, a list or an object of
    such, an object for a dataclass, or nothing where the type allows that."""
    if isinstance(kind, UnionType):
        return any(has_json_type(part, value) for part in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(has_json_type(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(has_json_type(get_args(kind)[1], item) for item in value.values())
    if is_dataclass(kind):
        return isinstance(value, dict)
    return type(value) is kind or (kind is float and type(value) is int)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def write_json_object(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
