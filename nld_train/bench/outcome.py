"""What a benchmark found: a short table for people and JSON for programs, both with date and versions."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch

from nld_train.bench.measure import Measurement

PACKAGES = ("torch", "triton", "transformer-engine", "megatron-core", "megatron-bridge")
NOTHING = "-"
OK, WRONG = "ok", "WRONG"  # verdicts on results


@dataclass
class BenchOutcome:
    """The outcome of one part: attention, LM-head loss, step, correctness or training."""

    part: str
    subject: str  # the sizes, on one line
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # lines below the table
    figures: dict[str, Any] = field(default_factory=dict)  # all numbers, for programs
    wrong: bool = False  # a result was out of bounds
    environment: dict[str, str] = field(default_factory=dict)


def bench_environment(device: torch.device) -> dict[str, str]:
    """Date, device and versions, without which a number means nothing."""
    found = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "python": platform.python_version()}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
    else:
        found["device"] = f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def outcome_markdown(outcome: BenchOutcome) -> str:
    """The outcome as Markdown: subject, table, notes."""
    return "\n".join(
        [f"{outcome.part}: {outcome.subject}", "", aligned_table(outcome.head, outcome.rows), "", *outcome.notes]
    )


def aligned_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are padded to one width, so that it also reads in a terminal."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    ruled = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in ruled
    )


def outcomes_to_json(outcomes: Sequence[BenchOutcome]) -> str:
    """The outcomes as JSON text, which `outcomes_from_json` reads."""
    return json.dumps([vars(outcome) for outcome in outcomes], indent=1) + "\n"


def outcomes_from_json(text: str) -> list[BenchOutcome]:
    """The outcomes that `outcomes_to_json` wrote."""
    return [BenchOutcome(**entry) for entry in json.loads(text)]


def result_figures(results: Sequence[Measurement]) -> dict[str, Any]:
    """All fields of the measurements, by the alternative's name."""
    return {result.name: {key: value for key, value in vars(result).items() if key != "name"} for result in results}


def time_ratio(above: Measurement, below: Measurement) -> float:
    """How many times as long `above` took as `below`: the median over the rounds of the ratio in a round.

    The two ran next to each other in a round, so a busy machine slowed both.
    """
    return median(a / b for a, b in zip(above.seconds, below.seconds, strict=False))


def milliseconds_text(result: Measurement) -> str:
    """The median in ms, with the fastest and the slowest round; NOTHING if it did not run."""
    if not result.seconds:
        return NOTHING
    low, middle, high = (1e3 * pick(result.seconds) for pick in (min, median, max))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def mebibytes_text(result: Measurement) -> str:
    """The peak memory in MiB; NOTHING if it was not measured."""
    return NOTHING if result.peak is None else f"{result.peak / 2**20:,.0f}"


def teraflops_text(result: Measurement) -> str:
    """The useful TFLOP/s; NOTHING if it did not run."""
    return f"{result.rate / 1e12:.3g}" if result.seconds else NOTHING


def refusal_lines(results: Sequence[Measurement]) -> list[str]:
    """A line for each alternative that did not run."""
    return [f"{result.name} did not run: {result.refusal}" for result in results if result.refusal is not None]
