"""What `nld jobs` shows: every start of a run, how far it came and why it ended. It cancels queued jobs as well."""

import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from nld_train.config import RunConfig, require
from nld_train.exit_status import MEANING
from nld_train.launch.slurm_command import slurm_command
from nld_train.run_folder.attempts import Attempt, first_recorded_time, read_attempts, read_submissions
from nld_train.run_folder.frozen import read_frozen_run
from nld_train.run_folder.metrics import Entry, entries_of_kind, read_metrics_so_far
from nld_train.run_folder.paths import METRICS, RUN

KILLED = "ended without a word: killed, or its node lost"
# What the job's script knows of an end, in words.
ENDED_BY = {
    "preempted": "preempted",
    "timeout": "over its time limit",
    "cancelled": "cancelled",
    "requeued": "Slurm queued it again: a node lost, or preempted",
}
HEAD = ("job", "nodes", "began", "ended", "steps", "tokens", "AR loss", "how it ended")


def chain_report(outputs: Sequence[Path]) -> str:
    """The reports of the runs in these folders, in the order they were first launched; other folders are passed over.

    Raises: UserError where no folder holds a run.
    """
    runs = [output for output in outputs if (output / RUN).is_file() or first_recorded_time(output) is not None]
    require(bool(runs), f"no file {outputs[0] / RUN}", "the output folder of a run", "name the folder of a run")
    queue = queued_jobs(runs)
    ordered = sorted(runs, key=lambda output: first_recorded_time(output) or datetime.max)
    return "\n\n".join(run_attempts_report(output, queue) for output in ordered)


def run_attempts_report(output: Path, states: Mapping[str, str]) -> str:
    """The starts of a run as aligned lines, and below them its exports and its jobs in Slurm's queue.

    states: job number -> Slurm's state, as `queued_jobs` gives it.
    """
    found, of_this_run = read_attempts(output), run_job_numbers(output)
    queue = {number: state for number, state in states.items() if number in of_this_run}
    run = read_frozen_run(output) if (output / RUN).is_file() else None
    title = f"{output}: {'no step yet' if found else 'not started'}"
    if run is not None:
        title = f"{run.name}: step {newest_known_step(found):,} of {run.train.iterations:,}"
    lines = attempt_lines(output, run, found) if found else []
    exports = [
        f"export to {job.export}: {export_state(job.export, queue.pop(job.job, ''))}"
        for job in read_submissions(output)
        if job.export is not None
    ]
    return "\n".join([title, *lines, *exports, *(f"job {number}: {state}" for number, state in queue.items())])


def attempt_lines(output: Path, run: RunConfig | None, found: Sequence[Attempt]) -> list[str]:
    """The lines of a run's starts; below each line, what became of its nodes. run: None before any rank started."""
    entries = entries_of_kind(read_metrics_so_far(output / METRICS), "train")
    rows = [HEAD, *(attempt_row(run, entries, found, index) for index in range(len(found)))]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(HEAD))]
    lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows]
    notes: list[list[str]] = [[], *map(node_lines, found)]
    return [line for first, more in zip(lines, notes, strict=True) for line in (first, *more)]


def node_lines(attempt: Attempt) -> list[str]:
    """Lines on the nodes that failed or were left out, and on what stopped the chain."""
    lines = [f"node {name}: {why}" for name, why in attempt.unhealthy.items()]
    if attempt.excluded:
        lines.append(f"left out from then on: {', '.join(attempt.excluded)}")
    if attempt.kept:
        lines.append(f"kept, or the job would not have the nodes to run: {', '.join(attempt.kept)}")
    if attempt.stopped and attempt.how != "cancelled":
        lines.append(f"the chain stopped: {attempt.stopped}")
    return [f"    {line}" for line in lines]


def newest_known_step(found: Sequence[Attempt]) -> int:
    """The newest step that the records know to be saved."""
    return max((attempt.last_step or attempt.first_step for attempt in found), default=0)


def attempt_row(
    run: RunConfig | None, entries: Sequence[Entry], found: Sequence[Attempt], index: int
) -> tuple[str, ...]:
    """The cells of one start, in the order of HEAD. A killed start came as far as the next one resumed.

    run: None before any rank started.
    """
    attempt, is_last = found[index], index + 1 == len(found)
    last = attempt.last_step
    if last is None and not is_last:
        last = found[index + 1].first_step
    if last is None:
        last = int(entries[-1]["step"]) if entries else attempt.first_step
    row_tokens = 0 if run is None else run.train.global_batch * run.data.sequence_length
    return (
        f"{attempt.job or 'by hand'}{f' restart {attempt.restart}' if attempt.restart else ''}",
        ",".join(attempt.nodes) if len(attempt.nodes) < 3 else str(len(attempt.nodes)),
        time_text(attempt.began),
        time_text(attempt.ended),
        f"{attempt.first_step:,} -> {last:,}",
        f"{(last - attempt.first_step) * row_tokens:,}",
        ar_loss_at(entries, last),
        attempt_ending_text(attempt, is_last),
    )


def time_text(time: datetime | None) -> str:
    return "" if time is None else f"{time:%m-%d %H:%M:%S}"


def ar_loss_at(entries: Sequence[Entry], step: int) -> str:
    """The AR loss of the last logged step up to `step`, in nats per token; "" where none was logged."""
    losses = [entry["AR loss"] for entry in entries if entry["step"] <= step and "AR loss" in entry]
    return f"{losses[-1]:.4f}" if losses else ""


def attempt_ending_text(attempt: Attempt, is_last: bool) -> str:
    """How a start ended, in words."""
    if attempt.status is None:
        return f"running, or {KILLED}" if is_last else KILLED
    text = MEANING.get(attempt.status, f"failed with status {attempt.status}")
    return f"{text} ({ENDED_BY[attempt.how]})" if attempt.how in ENDED_BY else text


def export_state(folder: str, queued: str) -> str:
    """The state of an export, in words. queued: Slurm's state of its job, "" once that has ended."""
    return queued or ("done" if Path(folder).is_dir() else "not there, see its log")


def run_job_numbers(output: Path) -> set[str]:
    """The numbers of the jobs that a run was submitted as, or was started in."""
    return {job.job for job in read_submissions(output)} | {
        attempt.job for attempt in read_attempts(output) if attempt.job
    }


def queued_jobs(outputs: Sequence[Path]) -> dict[str, str]:
    """Job number -> state, for the runs' jobs that wait or run; empty without Slurm.

    Raises: UserError where squeue fails.
    """
    numbers = sorted(set().union(*map(run_job_numbers, outputs)), key=int)
    if not numbers or shutil.which("squeue") is None:
        return {}
    done = slurm_command("squeue", "--noheader", "--me", "--format=%A %T %r")
    require(done.returncode == 0, f"squeue fails: {done.stderr.strip()}", "a cluster that answers", "try again later")
    states = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    return {number: states[number] for number in numbers if number in states}


def cancel_jobs(outputs: Sequence[Path]) -> list[str]:
    """Cancel the runs' jobs that wait or run, and return their numbers. Raises: UserError where there is none."""
    numbers, named = list(queued_jobs(outputs)), ", ".join(map(str, outputs))
    require(bool(numbers), f"no job of {named} waits or runs", "a run in Slurm's queue", "see `squeue --me`")
    done = slurm_command("scancel", *numbers)
    require(done.returncode == 0, f"scancel fails: {done.stderr.strip()}", "jobs of your own", "ask their owner")
    return numbers
