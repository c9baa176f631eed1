"""What `nld jobs` shows of a run: every start, how far each came and why it ended; and how to cancel what is queued."""

import shutil
import subprocess
from datetime import datetime
from pathlib import Path

from nld_train.config import RunConfig, require
from nld_train.job_record import Attempt, attempts
from nld_train.launch.submit import FOLDER
from nld_train.recipe import from_json
from nld_train.report.history import METRICS, Entry, of_kind, read_entries

SECONDS = 60  # that Slurm's commands may take
# Exit statuses of `nld train`, in words.
MEANING = {0: "finished", 2: "refused at the door", 75: "asked to stop, saved", 130: "left at once, not saved"}
KILLED = "ended without a word: killed, or its node lost"
HEAD = ("job", "nodes", "began", "ended", "steps", "tokens", "AR loss", "how it ended")


def jobs_report(output: Path) -> str:
    """The starts of a run as aligned lines, and below them what Slurm says of its jobs."""
    frozen = output / "run.json"
    require(frozen.is_file(), f"no file {frozen}", "the output folder of a run", "name the folder of a run")
    run = from_json(frozen.read_text(encoding="utf-8"))
    entries = of_kind(read_entries(output / METRICS), "train") if (output / METRICS).is_file() else []
    found = attempts(output)
    rows = [HEAD, *(row(run, entries, found, index) for index in range(len(found)))]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(HEAD))]
    lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows]
    queued = [f"job {number}: {state}" for number, state in in_queue(output).items()]
    return "\n".join([f"{run.name}: step {reached(found):,} of {run.train.iterations:,}", *lines, *queued])


def reached(found: list[Attempt]) -> int:
    """The newest step known to be saved."""
    return max((attempt.last_step or attempt.first_step for attempt in found), default=0)


def row(run: RunConfig, entries: list[Entry], found: list[Attempt], index: int) -> tuple[str, ...]:
    """One start. One that was killed reached what the next one resumed at."""
    attempt, is_last = found[index], index + 1 == len(found)
    last = attempt.last_step
    if last is None and not is_last:
        last = found[index + 1].first_step
    if last is None:
        last = int(entries[-1]["step"]) if entries else attempt.first_step
    tokens = (last - attempt.first_step) * run.train.global_batch * run.data.sequence_length
    return (
        f"{attempt.job or 'by hand'}{f' restart {attempt.restart}' if attempt.restart else ''}",
        str(attempt.nodes),
        clock(attempt.began),
        clock(attempt.ended),
        f"{attempt.first_step:,} -> {last:,}",
        f"{tokens:,}",
        loss_at(entries, last),
        reason(attempt, is_last),
    )


def clock(time: datetime | None) -> str:
    return "" if time is None else f"{time:%m-%d %H:%M:%S}"


def loss_at(entries: list[Entry], step: int) -> str:
    """AR loss of the last logged step up to `step`."""
    losses = [entry["AR loss"] for entry in entries if entry["step"] <= step and "AR loss" in entry]
    return f"{losses[-1]:.4f}" if losses else ""


def reason(attempt: Attempt, is_last: bool) -> str:
    if attempt.status is None:
        return f"running, or {KILLED}" if is_last else KILLED
    return MEANING.get(attempt.status, f"failed with status {attempt.status}")


def in_queue(output: Path) -> dict[str, str]:
    """Number -> state of the run's jobs that Slurm still knows as waiting or running; empty without Slurm."""
    numbers = sorted(path.stem for path in (output / FOLDER).glob("*.sbatch"))
    if not numbers or shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", "--me", "--format=%A %T %r"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    require(done.returncode == 0, f"squeue fails: {done.stderr.strip()}", "a cluster that answers", "try again later")
    states = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    return {number: states[number] for number in numbers if number in states}


def cancel(output: Path) -> list[str]:
    """Cancel the run's jobs that wait or run; returns their numbers. Raises: UserError where there is none."""
    numbers = list(in_queue(output))
    require(bool(numbers), f"no job of {output} waits or runs", "a run in Slurm's queue", "see `squeue --me`")
    done = subprocess.run(["scancel", *numbers], capture_output=True, text=True, timeout=SECONDS, check=False)
    require(done.returncode == 0, f"scancel fails: {done.stderr.strip()}", "jobs of your own", "ask their owner")
    return numbers
