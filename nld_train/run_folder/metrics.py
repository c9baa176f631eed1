"""OUTPUT/metrics.jsonl: one line for each logged step, evaluation and spike. The last rank alone writes it."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from nld_train.config import require
from nld_train.errors import UserError
from nld_train.files import write_text

logger = logging.getLogger(__name__)
KINDS = ("train", "validation")
SPIKE = "spike"  # a step whose gradient norm stood out

Entry = Mapping[str, float]  # "step" and the logged values, by their names in metrics.jsonl


def read_metrics(path: Path) -> list[dict]:
    """The lines of metrics.jsonl in their order. Lines that no run writes, such as torn ones, are left out with a
    warning that counts them. Raises: UserError where the file is missing, empty, or has no other lines."""
    require(path.is_file(), f"no file {path}", "a run that has trained", "train it with `nld train` first")
    entries = read_metrics_so_far(path)
    require(len(entries) > 0, f"{path} is empty", "at least one logged step", "let the run reach its first logged step")
    return entries


def read_metrics_so_far(path: Path) -> list[dict]:
    """The same, and no entries where the file is missing or empty: the run has logged no step yet."""
    lines = _text_lines(path)
    entries, unreadable = _parsed_lines(path, lines)
    _warn_of_unreadable(unreadable, "left out")
    return [entry for _, entry in entries]


def _text_lines(path: Path) -> list[str]:
    """The lines with their ends; JSON escapes every other character that ends a line elsewhere."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [f"{line}\n" for line in text.split("\n")[:-1]] + [line for line in text.split("\n")[-1:] if line]


def _parsed_lines(path: Path, lines: Sequence[str]) -> tuple[list[tuple[str, dict]], list[UserError]]:
    """The lines that a run writes, each with its entry, and what is wrong with the others. Raises: UserError where all
    are others: the file is no run's."""
    entries, unreadable = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entries.append((line, parse_metrics_line(line, f"{path} line {number}")))
        except UserError as error:
            unreadable.append(error)
    if unreadable and not entries:
        raise unreadable[0]
    return entries, unreadable


def _warn_of_unreadable(unreadable: Sequence[UserError], what: str) -> None:
    if unreadable:
        logger.warning("%s; %d such line(s) %s", unreadable[0].got, len(unreadable), what)


def parse_metrics_line(line: str, where: str) -> dict:
    """A line as a dict with "kind", "step" and numbers. where: the line's file and number. Raises: UserError."""
    allowed, do = '{"step": ..., "kind": "train" or "validation", name: number}', "take the line away"
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}", allowed, do) from None
    require(isinstance(entry, dict) and entry.get("kind") in (*KINDS, SPIKE), f"{where}: {line[:60]}", allowed, do)
    numbers = [value for name, value in entry.items() if name != "kind"]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers)
    require(numeric and "step" in entry, f"{where}: {line[:60]}", allowed, do)
    return entry


def entries_of_kind(entries: Sequence[dict], kind: str) -> list[Entry]:
    """The entries of one kind, in ascending order of steps; of a step that was written twice, the last entry counts."""
    last = {entry["step"]: entry for entry in entries if entry["kind"] == kind}
    return [{name: value for name, value in last[step].items() if name != "kind"} for step in sorted(last)]


def truncate_metrics(path: Path, step: int | None) -> None:
    """Drop the entries of metrics.jsonl after `step` (None: all of them): the run takes those steps again, and a curve
    has each step once. A last line that was cut off is dropped too, and so are torn lines, with a warning. Raises:
    UserError where no line is one that a run writes."""
    lines = _text_lines(path)
    entries, unreadable = _parsed_lines(path, [line for line in lines if line.endswith("\n")])
    _warn_of_unreadable(unreadable, "dropped")
    kept = [line for line, entry in entries if entry["step"] <= (-1 if step is None else step)]
    if kept != lines:
        write_text(path, "".join(kept))
