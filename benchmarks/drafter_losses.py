"""The drafter's losses at equal cost: each trained from several seeds, by accepted length on held-out prompts.

    .venv/bin/python benchmarks/drafter_losses.py                # needs out/demo/stage2_joint, which `make demo` trains
    .venv/bin/python benchmarks/drafter_losses.py --seeds 5 train.iterations=120 optimizer.decay_iterations=60

Every run has the rows, the steps, the learning rate and the start of the others of its seed; only the loss differs.
The learning rate was chosen with the paper's loss. A seed gives the adapter another start, its blocks other draws, and
other rows first. The table goes to the terminal and to table.md in the output folder: the accepted length of greedy
drafts, and the expected length, an estimate of that of drafts sampled at temperature 1. A run that is finished is not
trained again, and one that was interrupted goes on: its seconds are then those since.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nld_train.files import write_text
from nld_train.loss.objective import ACCEPTED, EXPECTED
from nld_train.report.history import read_stage

RECIPE = "tiny_drafter"
WEIGHTS = ("drafter.place_decay=0.8", "drafter.first_error_weight=2")
LOSSES: Mapping[str, Sequence[str]] = {
    "lk_hybrid": ("drafter.loss=lk_hybrid",),
    "accepted_length": ("drafter.loss=accepted_length",),
    "first_failure": ("drafter.loss=first_failure",),
    "all_places, weighted": ("drafter.loss=all_places", *WEIGHTS),
}
# So that a run takes about a minute of one core.
SHORT = ("train.iterations=60", "optimizer.decay_iterations=30", "train.eval_interval=60", "checkpoint.interval=60")
ONE_RANK = ("parallel.world_size=1", "train.micro_batch=8")


@dataclass(frozen=True)
class TrainedDrafter:
    """What came of one run."""

    before: float  # accepted length of greedy drafts, tokens a round
    after: float
    expected: float  # length, after
    seconds: float  # wall clock
    cpu_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("override", nargs="*", help="key=value, as of `nld train`, for every run")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--output", default="out/benchmarks/drafter_losses", help="default: %(default)s")
    parser.add_argument("--demo", default="out/demo", help="folder of the demo's model and data (default: %(default)s)")
    args = parser.parse_args()
    found: dict[str, dict[int, TrainedDrafter]] = {name: {} for name in LOSSES}
    for seed in range(1, args.seeds + 1):
        for name, settings in LOSSES.items():
            folder = Path(args.output) / f"{name.replace(', ', '_')}_{seed}"
            given = [*demo_settings(args.demo), *SHORT, *ONE_RANK, *settings, *seed_settings(seed), *args.override]
            found[name][seed] = train_once(folder, given)
            print(f"seed {seed}, {name}: {described(found[name][seed])}", flush=True)
            write_text(Path(args.output) / "table.md", markdown_table(found))
    print(markdown_table(found), end="")


def demo_settings(demo: str) -> list[str]:
    return [f"init={demo}/stage2_joint", f"data.blend={demo}/data/almanac", f"data.tokenizer={demo}/tokenizer"]


def seed_settings(seed: int) -> list[str]:
    return [f"{name}={seed}" for name in ("train.seed", "diffusion.noise_seed", "data.shuffle_seed")]


def train_once(folder: Path, settings: Sequence[str]) -> TrainedDrafter:
    """Train a run, unless its record says that it is finished. The settings of the two must be the same."""
    record = folder.with_suffix(".json")
    if not record.is_file():
        began, spent = time.monotonic(), child_seconds()
        command = [sys.executable, "-m", "nld_train.cli", "train", RECIPE, *settings, f"output={folder}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        cost = {"seconds": time.monotonic() - began, "cpu_seconds": child_seconds() - spent}
        write_text(record, json.dumps({**cost, "settings": list(settings)}, indent=2) + "\n")
    kept = json.loads(record.read_text())
    assert kept["settings"] == list(settings), f"{record} is of other settings: choose another --output"
    evaluated = [entry for entry in read_stage(folder).validation if ACCEPTED in entry]
    first, last = evaluated[0], evaluated[-1]
    return TrainedDrafter(first[ACCEPTED], last[ACCEPTED], last[EXPECTED], kept["seconds"], kept["cpu_seconds"])


def child_seconds() -> float:
    """CPU seconds of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def described(run: TrainedDrafter) -> str:
    return f"{run.before:.2f} -> {run.after:.2f} in {run.seconds:.0f} s, {run.cpu_seconds:.0f} of CPU"


def markdown_table(found: Mapping[str, Mapping[int, TrainedDrafter]]) -> str:
    """Loss x seed -> accepted length before and after, and means with standard errors over the seeds there are."""
    seeds = sorted({seed for runs in found.values() for seed in runs})
    measured = ["mean after", "more than the first, same seeds", "expected length", "wall s", "CPU s"]
    head = ["loss", *(f"seed {seed}" for seed in seeds), *measured]
    rows = [head, ["---"] * len(head), *(table_row(name, runs, found, seeds) for name, runs in found.items() if runs)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def table_row(
    name: str,
    runs: Mapping[int, TrainedDrafter],
    found: Mapping[str, Mapping[int, TrainedDrafter]],
    seeds: Sequence[int],
) -> list[str]:
    first = next(iter(found.values()))
    each = [f"{runs[seed].before:.2f} -> {runs[seed].after:.2f}" if seed in runs else "" for seed in seeds]
    more = [run.after - first[seed].after for seed, run in runs.items()]
    return [
        *(name, *each, mean_text([run.after for run in runs.values()]), "" if runs is first else mean_text(more)),
        mean_text([run.expected for run in runs.values()]),
        f"{statistics.mean(run.seconds for run in runs.values()):.0f}",
        f"{statistics.mean(run.cpu_seconds for run in runs.values()):.0f}",
    ]


def mean_text(values: Sequence[float]) -> str:
    """ "9.29 +- 0.11": the mean and its standard error; of one value itself alone."""
    error = f" +- {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{error}"


if __name__ == "__main__":
    main()
