"""Settings as text and as plain values, and back.

The types written in the dataclasses decide: no setting is known here by name.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import SequenceMatcher
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

from nld_train.errors import UserError

BOOLS = {"true": True, "false": False}
NONE = "none"


def field_types(section: type) -> dict[str, Any]:
    """Give the name and the type of every field of a dataclass, in the order of its fields."""
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in fields(section)}


def is_section(kind: object) -> TypeGuard[type]:
    return isinstance(kind, type) and is_dataclass(kind)


def section_type(kind: object) -> type | None:
    """Give D where a setting's type is the dataclass D or `D | None`, and None for every other type."""
    inner = optional_type(kind) or kind
    return inner if is_section(inner) else None


def leaf_types(section: type) -> dict[str, Any]:
    """Map the dotted key of every setting of a dataclass, and of the dataclasses inside it, to its type."""
    found: dict[str, Any] = {}
    for name, kind in field_types(section).items():
        inner = section_type(kind)
        if inner:
            found |= {f"{name}.{key}": leaf for key, leaf in leaf_types(inner).items()}
        else:
            found[name] = kind
    return found


def leaf_values(section: object) -> dict[str, Any]:
    """Map the dotted key of every setting of a dataclass instance, and of the instances inside it, to its value.

    A section that is None has no settings.
    """
    found: dict[str, Any] = {}
    for name, kind in field_types(type(section)).items():
        value = getattr(section, name)
        if section_type(kind) is None:
            found[name] = value
        elif value is not None:
            found |= {f"{name}.{key}": leaf for key, leaf in leaf_values(value).items()}
    return found


def changed_settings(section: object) -> dict[str, Any]:
    """The settings of a dataclass instance, and of the instances inside it, that are not at their defaults, by dotted
    key; those that have no default are among them."""
    found: dict[str, Any] = {}
    for field in fields(section):  # type: ignore[arg-type]
        value = getattr(section, field.name)
        if is_dataclass(value):
            found |= {f"{field.name}.{key}": leaf for key, leaf in changed_settings(value).items()}
        elif value != field.default:
            found[field.name] = value
    return found


def replace_leaves[Section](section: Section, values: Mapping[str, object]) -> Section:
    """Copy a dataclass instance with the settings under the dotted keys replaced.

    Every dataclass is built once, with all of its new values, so that values which are valid only together pass.
    """
    changes: dict[str, object] = {}
    inner: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        name, dot, rest = key.partition(".")
        if dot:
            inner.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
    for name, part in inner.items():
        before = getattr(section, name)
        if before is None:
            raise UserError(
                f"{name}.{next(iter(part))} given, but there is no {name} section",
                f"a recipe with a {name} section",
                "take it away, or use such a recipe",
            )
        changes[name] = replace_leaves(before, part)
    return replace(section, **changes)  # type: ignore[type-var]


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Find the known name that is most like `name`, compared as a whole and in what follows the last dot."""

    def likeness(candidate: str) -> float:
        whole = SequenceMatcher(None, name, candidate).ratio()
        return whole + SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()

    return max(known, key=likeness)


def optional_type(kind: object) -> Any:
    """Give X of `X | None`, and None for every other type."""
    if not isinstance(kind, UnionType):
        return None
    inner = [part for part in get_args(kind) if part is not NoneType]
    assert len(inner) == 1, f"settings are of one type, or of one type or None: {kind}"
    return inner[0]


def describe_type(kind: object) -> str:
    """Say in words what a setting of this type may be."""
    if optional_type(kind):
        return f"{describe_type(optional_type(kind))}; or {NONE}"
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "one or more, with commas between"
    words: dict[object, str] = {
        bool: "true, false",
        int: "whole numbers such as 1000, 1_000, 300e9",
        float: "numbers such as 0.1, 1e-5",
        str: "text that is not empty",
    }
    return words[kind]


def parse_value(key: str, kind: object, text: str) -> object:
    """Read `text` as a value of the setting `key`, which has the type `kind`. It is the inverse of `format_value`.

    Raises: UserError if `text` is no such value.
    """
    try:
        return _parse(kind, text.strip())
    except ValueError:
        raise UserError(f"{key}={text!r}", describe_type(kind), f"give {key} one of these") from None


def _parse(kind: object, text: str) -> object:
    inner = optional_type(kind)
    if inner:
        return None if text.lower() == NONE else _parse(inner, text)
    if get_origin(kind) is tuple:
        return tuple(_parse(get_args(kind)[0], part.strip()) for part in text.split(","))
    if kind is bool:
        return check_value(bool, BOOLS.get(text.lower()))
    if kind is int:
        return _whole(text)
    return check_value(kind, float(text) if kind is float else text)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)  # 300e9
        if not number.is_integer():
            raise
        return int(number)


def check_value(kind: object, value: object) -> object:
    """Give `value` as the type `kind` wants it (a list as a tuple, 1 as 1.0).

    Raises: ValueError if it is of another type.
    """
    inner = optional_type(kind)
    if inner:
        return None if value is None else check_value(inner, value)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(check_value(get_args(kind)[0], item) for item in value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind is str and isinstance(value, str):
        value.encode()  # a byte that is no UTF-8 is spelled as half a surrogate pair, which no file can hold
    if kind in (bool, int, str) and type(value) is kind and value != "" and "\0" not in str(value):
        return value
    raise ValueError(value)


def format_value(value: object) -> str:
    """Write a value in the spelling that `parse_value` reads; whole numbers from 10_000 on have underscores."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    return ",".join(map(format_value, value)) if isinstance(value, tuple) else str(value)


def to_tree(section: object) -> dict[str, Any]:
    """Give a dataclass instance as nested dicts of plain values."""
    found = {}
    for name, kind in field_types(type(section)).items():
        value = getattr(section, name)
        found[name] = to_tree(value) if section_type(kind) and value is not None else value
    return found


def from_tree[Section](section: type[Section], tree: object, prefix: str = "") -> Section:
    """Build the dataclass instance whose `to_tree` is `tree`. Every field must be there, and nothing else.

    Raises: UserError.
    """
    known = field_types(section)
    _check_keys(tree, set(known), prefix)
    assert isinstance(tree, dict)
    return section(**{name: _from_leaf(kind, tree[name], prefix + name) for name, kind in known.items()})


def _from_leaf(kind: object, value: object, key: str) -> object:
    inner = section_type(kind)
    if inner and (value is not None or is_section(kind)):
        return from_tree(inner, value, f"{key}.")
    try:
        return check_value(kind, value)
    except ValueError:
        raise UserError(f"{key}={value!r}", describe_type(kind), f"give {key} one of these") from None


def _check_keys(tree: object, known: set[str], prefix: str) -> None:
    name = prefix.rstrip(".") or "the run"
    if not isinstance(tree, dict):
        raise UserError(f"{name} is {tree!r}", "a section with its settings", "write the configuration again")
    for word, keys in (("unknown", set(tree) - known), ("missing", known - set(tree))):
        if keys:
            listed = ", ".join(prefix + key for key in sorted(keys))
            raise UserError(
                f"{word} settings: {listed}",
                f"exactly the settings of {name} in this version",
                "use the version that wrote the configuration, or write it again from its recipe",
            )
