"""Correctness, then speed, of the GPU kernels: benchmarks/gpu.sh runs this; benchmarks/README.md explains it.

Each part is a process of its own with a share of the time: one that fails, hangs or spoils the GPU does not stop the
others, and what a part has measured when its time is up still counts.
"""

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from nld_train.bench.outcome import BenchOutcome, outcome_markdown, outcomes_from_json, outcomes_to_json
from nld_train.bench.summary import summary_table

BARE, WITH_MEGATRON = "nld_train.commands.bench", "nld_train.cli"
START, GRACE = 20, 15  # seconds that a process may take before and after its measurements
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Part:
    name: str
    share: int  # of the time
    options: tuple[str, ...]
    toy: tuple[str, ...]  # options of the dry run instead


PARTS = (
    Part("check", 30, (), ("--draws=1",)),
    Part("attention", 25, ("--rounds=15", "--profile"), ("--length=96", "--rounds=2", "--profile")),
    Part("loss", 8, ("--rounds=8",), ("--rows=64", "--vocabulary=2000", "--rounds=2")),
    Part(
        "step",
        27,
        ("--rounds=2", "--profile"),
        (
            "--rounds=2",
            "--profile",
            "model.layers=1",
            *("train.micro_batch=1", "train.global_batch=4", "data.sequence_length=64"),
        ),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="the same code at toy size on the CPU; keeps no results")
    parser.add_argument("--seconds", type=int, default=460, help="for everything (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts alone")
    args = parser.parse_args()
    # Started in the background of a script it would ignore Ctrl-C, and so would the parts, which are stopped by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parts = [part for part in PARTS if args.only is None or part.name in args.only]
    with tempfile.TemporaryDirectory() as folder:
        outcomes, troubles = run_parts(parts, args, Path(folder))
    text = "\n".join([summary_table(outcomes), "", *troubles])
    if not args.dry_run and outcomes:
        print(f"\nwrote {keep(outcomes, text, args.output)}")
    print(f"\n{text}")
    return 1 if troubles or any(outcome.wrong for outcome in outcomes) else 0


def run_parts(parts: Sequence[Part], args: argparse.Namespace, folder: Path) -> tuple[list[BenchOutcome], list[str]]:
    """What each part found, and a line on each that failed."""
    end = time.monotonic() + args.seconds
    outcomes: list[BenchOutcome] = []
    troubles: list[str] = []
    for number, part in enumerate(parts):
        later = sum(other.share for other in parts[number:])
        slice_ = (end - time.monotonic()) * part.share / later
        file = folder / f"{part.name}.json"
        said = run_part(part, slice_, file, args.dry_run)
        if file.exists():
            outcomes += outcomes_from_json(file.read_text())
        if said is not None:
            troubles.append(f"{part.name}: {said}")
            print(troubles[-1], flush=True)
    return outcomes, troubles


def run_part(part: Part, seconds: float, file: Path, dry: bool) -> str | None:
    """Run it within `seconds`; what went wrong, or None. Results lie in `file` if it came that far."""
    module = WITH_MEGATRON if part.name == "step" and find_spec("megatron") is not None and not dry else BARE
    words = [sys.executable, "-m", module, *(["bench"] if module == WITH_MEGATRON else []), part.name]
    budget = max(1, int(seconds - START - GRACE if seconds > 2 * (START + GRACE) else seconds / 2))
    words += [f"--json={file}", f"--seconds={budget}", *(("--device=cpu", *part.toy) if dry else part.options)]
    print(f"\n== {part.name}, {budget} s", flush=True)
    child = subprocess.Popen(words)
    try:
        child.wait(timeout=max(1.0, seconds - GRACE))
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # it prints and writes what it has
        try:
            child.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return "killed: it did not end in time"
    return None if child.returncode == 0 else f"exit status {child.returncode}"


def keep(outcomes: Sequence[BenchOutcome], text: str, folder: Path) -> Path:
    """Write results as JSON and as Markdown, under date and device; never over older ones."""
    found = outcomes[0].environment
    device = re.sub(r"[^A-Za-z0-9]+", "-", found["device"]).strip("-")
    stem = f"{found['date'][:16].replace(':', '')}-{device}"
    versions = ", ".join(f"{name} {value}" for name, value in found.items())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(outcomes_to_json(outcomes))
    page = "\n\n".join([f"# {stem}", versions, text, *(f"## {outcome_markdown(outcome)}" for outcome in outcomes)])
    (folder / f"{stem}.md").write_text(page + "\n")
    return folder / f"{stem}.md"


if __name__ == "__main__":
    sys.exit(main())
