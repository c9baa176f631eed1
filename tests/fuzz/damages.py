"""Ways to damage a file, each drawn from a generator of random numbers, so that a seed gives the same damage again."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

NEST = 100_000  # brackets: more than any parser of ours goes down
LONG = 1 << 17  # characters of a very long line
OTHER_VALUES: list[Any] = [
    *(None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", "text", "\ud800", "a\nb"),
    *([], [[]], {}, {"a": 1}, [1, "a", None]),
]
Damage = Callable[[Random, Path], str | None]  # returns what was done, where its name does not say it


def truncate_file(random: Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(max(1, len(content)))])


def flip_bits(random: Random, path: Path) -> None:
    content = bytearray(path.read_bytes() or b" ")
    for _ in range(random.choice((1, 1, 8))):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def zero_stretch(random: Random, path: Path) -> None:
    content = bytearray(path.read_bytes() or b" ")
    start = random.randrange(len(content))
    end = min(len(content), start + random.choice((1, 16, 512, 4096)))
    content[start:end] = bytes(end - start)
    path.write_bytes(content)


def empty_file(random: Random, path: Path) -> None:
    path.write_bytes(b"")


def folder_for_file(random: Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def file_for_folder(random: Random, path: Path) -> None:
    folder = path.parent
    shutil.rmtree(folder)
    folder.write_text("a file\n")


def remove_file(random: Random, path: Path) -> None:
    path.unlink()


def insert_bytes(random: Random, path: Path, what: bytes) -> None:
    content = path.read_bytes()
    place = random.randrange(len(content) + 1)
    path.write_bytes(content[:place] + what + content[place:])


def foreign_bytes(random: Random, path: Path) -> None:
    insert_bytes(random, path, random.choice((b"\xff", b"\xe9", b"\xc3(", b"\xed\xa0\x80")))


def rare_characters(random: Random, path: Path) -> None:
    insert_bytes(random, path, random.choice(("\u2028", "\u0085", "\x0c", "\x1c", "\x00", "\r", "\n\n")).encode())


def long_line(random: Random, path: Path) -> None:
    insert_bytes(random, path, b"x" * LONG)


def deep_nesting(random: Random, path: Path) -> None:
    insert_bytes(random, path, random.choice((b"[" * NEST, b'{"a":' * NEST)))


def byte_order_mark(random: Random, path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def line_ends(random: Random, path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def utf_16(random: Random, path: Path) -> None:
    path.write_bytes(path.read_bytes().decode("utf-8", "replace").encode("utf-16"))


def change_json(random: Random, path: Path) -> str:
    """Change, remove or double one value of a JSON file, of one line of a JSON-lines file, or of the header of a
    safetensors file. Returns: which of these, and of which key."""
    kind, content = random.choice(("change", "change", "change", "remove", "double", "unknown")), path.read_bytes()
    if path.suffix == ".safetensors":
        length = int.from_bytes(content[:8], "little")
        text, key = changed_json_text(random, content[8 : 8 + length].decode(), kind)
        header = text.encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    elif path.suffix == ".jsonl":
        lines = content.decode().splitlines()
        number = random.randrange(len(lines))
        lines[number], key = changed_json_text(random, lines[number], kind)
        path.write_text("".join(line + "\n" for line in lines))
    else:
        text, key = changed_json_text(random, content.decode(), kind)
        path.write_text(text)
    return f"{kind} {key}"


def changed_json_text(random: Random, text: str, kind: str) -> tuple[str, str]:
    """The text with one value changed, removed or doubled, anywhere in the tree, and the key of that value."""
    tree = json.loads(text)
    # Keys alone can be doubled or unknown: entries of a list have none.
    by_key = kind in ("double", "unknown")
    holder, key = random.choice([place for place in json_places(tree) if isinstance(place[0], dict) or not by_key])
    if kind == "remove":
        del holder[key]
    elif kind == "change":
        holder[key] = random.choice(OTHER_VALUES)
    elif kind == "unknown":
        holder[f"{key}_unknown"] = random.choice(OTHER_VALUES)
    written = json.dumps(tree)
    if kind == "double":
        was, other = (f"{json.dumps(key)}: {json.dumps(value)}" for value in (holder[key], random.choice(OTHER_VALUES)))
        written = written.replace(was, ", ".join(random.choice(((was, other), (other, was)))), 1)
    return written, str(key)


def json_places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) of a JSON tree."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from json_places(value)


ANY: tuple[Damage, ...] = (truncate_file, flip_bits, zero_stretch, empty_file, folder_for_file, remove_file)
TEXT: tuple[Damage, ...] = (
    *ANY,
    *(foreign_bytes, rare_characters, long_line, deep_nesting, byte_order_mark, line_ends, utf_16),
)
BINARY: tuple[Damage, ...] = (*ANY, *(truncate_file, flip_bits, zero_stretch) * 2)


def is_evident(damage: str, path: str) -> bool:
    """Whether a reader sees this damage of this file by the file alone, whatever it makes of its content."""
    if damage in ("foreign_bytes", "utf_16") or damage.startswith("double"):
        return True
    return damage == "zero_stretch" and path.endswith((".json", ".jsonl"))


def damages_of(path: str) -> tuple[Damage, ...]:
    """The damages that suit a file by its name."""
    folder = (file_for_folder,) if "/" in path else ()
    if path.endswith(".safetensors"):
        return (*BINARY, *folder, *(change_json,) * 10)
    if path.endswith((".json", ".jsonl")):
        return (*TEXT, *folder, *(change_json,) * 10)
    return (*(TEXT if path.endswith((".env", ".txt", ".jinja", ".csv", ".py")) else BINARY), *folder)
