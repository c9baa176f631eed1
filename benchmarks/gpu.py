"""Correctness, then speed, of the GPU kernels, then a training: benchmarks/gpu.sh runs this; benchmarks/README.md
explains it.

Each part is a process of its own with a share of the time: one that fails, hangs or spoils the GPU does not stop the
others, and what a part has measured when its time is up still counts. At the end one table says what was found of
every part, or why it was skipped, and one JSON file says the same.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from nld_train.bench.outcome import BenchOutcome, bench_environment, outcome_markdown, outcomes_from_json
from nld_train.bench.summary import BAD, FAILED, SKIPPED, SummaryLine, summary_lines, summary_table

BARE, WITH_MEGATRON = ("nld_train.commands.bench",), ("nld_train.cli", "bench")
START, GRACE = 20, 15  # seconds that a process may take before and after its measurements
ALL = "all of it"  # the case of a line about a whole part
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Part:
    name: str  # on the command line
    title: str  # in the table
    share: int  # of the time
    least: int  # seconds without which it is not begun; of the dry run a tenth
    options: tuple[str, ...]
    toy: tuple[str, ...]  # options of the dry run instead
    megatron: bool = False  # whether it is nothing without Megatron


PARTS = (
    Part("check", "correctness", 30, 60, (), ("--draws=1",)),
    Part("attention", "attention", 25, 50, ("--rounds=15", "--profile"), ("--length=96", "--rounds=2", "--profile")),
    Part("loss", "LM-head loss", 8, 20, ("--rounds=8",), ("--rows=64", "--vocabulary=2000", "--rounds=2")),
    Part(
        "step",
        "step",
        27,
        50,
        ("--rounds=2", "--profile"),
        (
            "--rounds=2",
            "--profile",
            "model.layers=1",
            *("train.micro_batch=1", "train.global_batch=4", "data.sequence_length=64"),
        ),
    ),
    Part(
        "training", "training", 60, 110, (), ("--steps=4", "model.layers=1", "data.sequence_length=64"), megatron=True
    ),
)


@dataclass(frozen=True)
class Finished:
    """What all parts found."""

    lines: list[SummaryLine]
    outcomes: list[BenchOutcome]
    machine: dict[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dry-run", action="store_true", help="the same code at toy size on the CPU; keeps no results without --output"
    )
    parser.add_argument("--seconds", type=int, default=460, help="for everything (default: %(default)s)")
    parser.add_argument("--output", type=Path, help=f"folder of the results (default: {RESULTS})")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts alone")
    args = parser.parse_args()
    # Started in the background of a script it would ignore Ctrl-C, and so would the parts, which are stopped by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        lines, outcomes = run_parts(args, Path(folder))
    on_gpu = torch.cuda.is_available() and not args.dry_run
    found = Finished(lines, outcomes, machine_facts(torch.device("cuda" if on_gpu else "cpu")))
    if args.output is not None or not args.dry_run:
        print(f"\nwrote {keep(found, args.output or RESULTS)}")
    print(f"\n{summary_table(lines)}")
    return 1 if any(line.verdict in BAD for line in lines) else 0


def run_parts(args: argparse.Namespace, folder: Path) -> tuple[list[SummaryLine], list[BenchOutcome]]:
    """The lines of the table in the order of the parts, also of those that were not asked for, and their outcomes."""
    end = time.monotonic() + args.seconds
    refused = {part.name: why for part in PARTS if (why := refusal_of_part(part, args)) is not None}
    todo = [part for part in PARTS if part.name not in refused]
    lines: list[SummaryLine] = []
    outcomes: list[BenchOutcome] = []
    for part in PARTS:
        if part.name in refused:
            lines.append(SummaryLine(part.title, ALL, verdict=SKIPPED, reason=refused[part.name]))
            continue
        later = sum(other.share for other in todo[todo.index(part) :])
        slice_ = (end - time.monotonic()) * part.share / later
        least = part.least / 10 if args.dry_run else part.least
        if slice_ < least:
            reason = f"{slice_:.0f} s were left for it, and it takes {least:.0f}"
            lines.append(SummaryLine(part.title, ALL, verdict=SKIPPED, reason=reason))
            continue
        file = folder / f"{part.name}.json"
        said = run_part(part, slice_, file, args.dry_run)
        mine = outcomes_from_json(file.read_text()) if file.exists() else []
        outcomes += mine
        lines += summary_lines(mine)
        # A part that found something wrong says so with its status too.
        if said is not None and not any(line.verdict in BAD for line in summary_lines(mine)):
            lines.append(SummaryLine(part.title, ALL, verdict=FAILED, reason=said))
    return lines, outcomes


def refusal_of_part(part: Part, args: argparse.Namespace) -> str | None:
    """Why a part is not even tried; None: it is."""
    if args.only is not None and part.name not in args.only:
        return "not asked for (--only)"
    return "no Megatron here" if part.megatron and find_spec("megatron") is None else None


def run_part(part: Part, seconds: float, file: Path, dry: bool) -> str | None:
    """Run it within `seconds`; what went wrong, or None. Results lie in `file` if it came that far."""
    with_megatron = part.megatron or (part.name == "step" and find_spec("megatron") is not None and not dry)
    words = [sys.executable, "-m", *(WITH_MEGATRON if with_megatron else BARE), part.name]
    budget = max(1, int(seconds - START - GRACE if seconds > 2 * (START + GRACE) else seconds / 2))
    words += [f"--json={file}", f"--seconds={budget}", *(("--device=cpu", *part.toy) if dry else part.options)]
    print(f"\n== {part.name}, {budget} s", flush=True)
    child = subprocess.Popen(words, start_new_session=True)  # so that it ends together with all that it has started
    try:
        child.wait(timeout=max(1.0, seconds - GRACE))
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # it prints and writes what it has
        try:
            child.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            return "killed: it did not end in time"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return None if child.returncode == 0 else f"exit status {child.returncode}"


def machine_facts(device: torch.device) -> dict[str, str]:
    """Date, device, versions, and what there is of cores and memory."""
    facts = bench_environment(device)
    facts["cores"] = str(os.cpu_count())
    facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts["GPU memory"] = f"{card.total_memory / 1e9:.0f} GB"
        facts["compute capability"] = f"{card.major}.{card.minor}"
        facts["GPUs"] = str(torch.cuda.device_count())
    return facts


def keep(found: Finished, folder: Path) -> Path:
    """Write all of it as JSON and as Markdown, under date and device; never over older ones."""
    device = re.sub(r"[^A-Za-z0-9]+", "-", found.machine["device"]).strip("-")
    stem = f"{found.machine['date'][:19].replace(':', '')}-{device}"
    facts = ", ".join(f"{name} {value}" for name, value in found.machine.items())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(results_json(found))
    pages = (f"## {outcome_markdown(outcome)}" for outcome in found.outcomes)
    page = "\n\n".join([f"# {stem}", facts, summary_table(found.lines), *pages])
    (folder / f"{stem}.md").write_text(page + "\n")
    return folder / f"{stem}.md"


def results_json(found: Finished) -> str:
    """The machine, the table line by line, and every figure behind it."""
    table = [vars(line) for line in found.lines]
    outcomes = [vars(outcome) for outcome in found.outcomes]
    return json.dumps({"machine": found.machine, "table": table, "outcomes": outcomes}, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
