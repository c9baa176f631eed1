"""OUTPUT/metrics.jsonl: one line for each logged step, evaluation and spike. The last rank alone writes it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nld_train.config import require
from nld_train.errors import UserError
from nld_train.files import write_text

KINDS = ("train", "validation")
SPIKE = "spike"  # a step whose gradient norm stood out

Entry = Mapping[str, float]  # "step" and the logged values, by their names in metrics.jsonl


def read_metrics(path: Path) -> list[dict]:
    """The lines of metrics.jsonl in their order. Raises: UserError where the file is missing, empty or broken; it names
    the line."""
    require(path.is_file(), f"no file {path}", "a run that has trained", "train it with `nld train` first")
    entries = [
        parse_metrics_line(line, f"{path} line {number}")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if line.strip()
    ]
    require(len(entries) > 0, f"{path} is empty", "at least one logged step", "let the run reach its first logged step")
    return entries


def parse_metrics_line(line: str, where: str) -> dict:
    """A line as a dict with "kind", "step" and numbers. where: the line's file and number. Raises: UserError."""
    allowed, do = '{"step": ..., "kind": "train" or "validation", name: number}', "take the line away"
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg}", allowed, do) from None
    require(isinstance(entry, dict) and entry.get("kind") in (*KINDS, SPIKE), f"{where}: {line[:60]}", allowed, do)
    numbers = [value for name, value in entry.items() if name != "kind"]
    numeric = all(isinstance(value, int | float) for value in numbers)
    require(numeric and "step" in entry, f"{where}: {line[:60]}", allowed, do)
    return entry


def entries_of_kind(entries: Sequence[dict], kind: str) -> list[Entry]:
    """The entries of one kind, in ascending order of steps; of a step that was written twice, the last entry counts."""
    last = {entry["step"]: entry for entry in entries if entry["kind"] == kind}
    return [{name: value for name, value in last[step].items() if name != "kind"} for step in sorted(last)]


def truncate_metrics(path: Path, step: int | None) -> None:
    """Drop the entries of metrics.jsonl after `step` (None: all of them): the run takes those steps again, and a curve
    has each step once. A last line that was cut off is dropped too. Raises: UserError for a line that no run writes."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    last = -1 if step is None else step
    kept = [
        line
        for number, line in enumerate(whole, 1)
        if parse_metrics_line(line, f"{path} line {number}")["step"] <= last
    ]
    if kept != lines:
        write_text(path, "".join(kept))
