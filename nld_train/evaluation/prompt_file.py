"""Prompts to evaluate with: a JSON-lines or Parquet file, one prompt a row.

A row holds `prompt` (a text) or `turns` (texts of a user, one after the other), and may hold `images` (paths beside the
file, which stand before the first turn's text), `category`, `reference` (the right answer) and `question_id` or `id`.
SPEED-Bench's files have this layout. Other keys are counted by name.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nld_train.errors import UserError, require

logger = logging.getLogger(__name__)
LAYOUT = '{"prompt": TEXT} or {"turns": [TEXT, ...]}, and if you like "images", "category", "reference", "id"'
NO_CATEGORY = "all"
# Keys of SPEED-Bench that say where a row comes from, and change nothing here.
ORIGIN = {"sub_category", "source", "src_id", "difficulty", "multiturn", "messages", "dataset"}
KNOWN = {"prompt", "turns", "images", "category", "reference", "question_id", "id"}
NAMED = 5  # unknown keys that are shown


@dataclass(frozen=True)
class EvalPrompt:
    """One row of a prompt file."""

    name: str  # its id, or its number in the file
    category: str
    turns: tuple[str, ...]  # what the user says; at least one text
    reference: str | None = None  # the right answer to the last turn
    images: tuple[Path, ...] = ()  # they stand before the first turn's text


def read_prompt_file(path: Path, categories: Sequence[str] = ()) -> list[EvalPrompt]:
    """The prompts of a file, of these categories (none given: of all). Raises: UserError that names file and row."""
    require(path.is_file(), f"no file {path}", "a file of prompts, .jsonl or .parquet", "check --prompts")
    unknown: Counter[str] = Counter()
    prompts = [_parse_row(row, path, number, unknown) for number, row in _rows(path)]
    require(len(prompts) > 0, f"{path} holds no prompt", LAYOUT, "write one into it")
    repeated = [name for name, count in Counter(prompt.name for prompt in prompts).items() if count > 1]
    require(not repeated, f"{path}: the id {repeated[:1]} stands twice", "an id of its own for every row", "correct it")
    if unknown:
        shown = ", ".join(f"{key} ({count} rows)" for key, count in unknown.most_common(NAMED))
        logger.warning("%s: keys that are not read: %s", path, shown)
    known = {prompt.category for prompt in prompts}
    strange = sorted(set(categories) - known)
    require(not strange, f"--category {strange[:1]}", ", ".join(sorted(known)), "choose among those of the file")
    return [prompt for prompt in prompts if not categories or prompt.category in categories]


def _rows(path: Path) -> Iterator[tuple[int, object]]:
    """(number from 1 on, row) of every row that is not blank. Raises: UserError."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet_rows(path), start=1)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}", "UTF-8 text", "convert the file") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path} row {number} is not JSON: {error}", LAYOUT, "correct the row") from error


def _parquet_rows(path: Path) -> list[object]:
    from pyarrow import ArrowException  # type: ignore[import-untyped]
    from pyarrow.parquet import read_table  # type: ignore[import-untyped]

    try:
        rows: list[object] = read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())[:120]}", "a Parquet file", "copy it again") from error
    return rows


def _parse_row(row: object, path: Path, number: int, unknown: Counter[str]) -> EvalPrompt:
    """One prompt. unknown: keys that are not read are counted there. Raises: UserError."""
    where = f"{path} row {number}"
    require(isinstance(row, Mapping), f"{where} is no object", LAYOUT, "correct the row")
    assert isinstance(row, Mapping)
    given = {key: value for key, value in row.items() if value is not None}
    unknown.update(str(key) for key in given if key not in KNOWN | ORIGIN)
    require("prompt" not in given or "turns" not in given, f"{where}: prompt and turns", LAYOUT, "leave one out")
    turns = given.get("turns", [given["prompt"]] if "prompt" in given else [])
    texts = isinstance(turns, list) and all(isinstance(turn, str) and turn.strip() for turn in turns)
    require(texts and len(turns) > 0, f"{where} has no text to answer", LAYOUT, "correct the row, or take it away")
    for key in ("category", "reference"):
        fine = isinstance(given.get(key, ""), str)
        require(fine, f"{where}: {key}={given.get(key)!r}", "a text", "correct the row")
    name = given.get("id", given.get("question_id", number))
    require(isinstance(name, str | int), f"{where}: id={name!r}", "a text or a number", "correct the row")
    images = _image_paths(given.get("images", []), path.parent, where)
    return EvalPrompt(str(name), given.get("category", NO_CATEGORY), tuple(turns), given.get("reference"), images)


def _image_paths(named: object, folder: Path, where: str) -> tuple[Path, ...]:
    """The images of a row, by paths beside the file. Raises: UserError."""
    fine = isinstance(named, list) and all(isinstance(name, str) for name in named)
    require(fine, f"{where}: images={str(named)[:60]!r}", "a list of paths beside the file", "correct the row")
    assert isinstance(named, list)
    paths = tuple(folder / name for name in named)
    for path in paths:
        require(
            path.is_file(), f"{where}: no file {path}", "images that are there", "copy it along, or correct the row"
        )
    return paths
