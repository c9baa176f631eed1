"""OUTPUT/jobs.jsonl: every start of a run, how it ended and what followed. `nld jobs` and the next start read it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from nld_train.run_folder.paths import JOBS

PRECISION = "milliseconds"  # of the recorded times
STARTS = "NLD_STARTS_WITHOUT_PROGRESS"  # variable: the restart limit
STARTS_DEFAULT = 3  # starts in a row that save no new step
UNHEALTHY, UNHEALTHY_BEFORE = "unhealthy", "unwell"  # JSON keys: as written now, and by versions before 2026-11-27


@dataclass(frozen=True)
class Attempt:
    """One start of a run, by a scheduler's job or by hand."""

    job: str  # number of Slurm's job; "" without Slurm
    restart: int  # how often Slurm had queued that job again
    nodes: tuple[str, ...]  # names of its nodes
    began: datetime
    first_step: int  # step that it resumed at
    ended: datetime | None = None  # None: still running, or killed
    last_step: int | None = None  # step of the newest checkpoint when it ended
    status: int | None = None  # exit status
    how: str = ""  # how it ended, as the scheduler's script says: one of requeue_decision.WAYS_TO_END
    unhealthy: Mapping[str, str] = field(default_factory=dict)  # node that failed -> why
    excluded: tuple[str, ...] = ()  # nodes that the job was queued again without
    kept: tuple[str, ...] = ()  # nodes that failed, and without which the job could not run
    stopped: str = ""  # why it was not queued again; "" where it was, or where nothing more was to do


@dataclass(frozen=True)
class SubmittedJob:
    """What `nld launch` handed to a scheduler for this run."""

    job: str
    at: datetime
    export: str | None  # folder that an export job writes; None: the job trains the run


def record_submission(output: Path, job: str, export: str | None) -> None:
    """Called by `nld launch`, once a scheduler has taken the job."""
    _append(output, {"event": "submitted", "job": job, "export": export})


def current_job(environment: Mapping[str, str]) -> tuple[str, int]:
    """The number of the Slurm job that this process belongs to ("" without one), and how often it was queued again."""
    return environment.get("SLURM_JOB_ID", ""), int(environment.get("SLURM_RESTART_COUNT", "0"))


def record_start(output: Path, step: int, nodes: Sequence[str], environment: Mapping[str, str]) -> None:
    """Called on the first node before the ranks start, or in their place where an unhealthy node keeps them from it."""
    job, restart = current_job(environment)
    _append(output, {"event": "start", "job": job, "restart": restart, "nodes": list(nodes), "step": step})


def record_end(output: Path, step: int, status: int, unhealthy: Mapping[str, str] | None = None) -> None:
    """Called on the first node after the ranks have ended. unhealthy: node that failed its check -> why."""
    _append(output, {"event": "end", "step": step, "status": status, UNHEALTHY: dict(unhealthy or {})})


def record_requeue_decision(
    output: Path, how: str, unhealthy: Mapping[str, str], excluded: Sequence[str], kept: Sequence[str], stopped: str
) -> None:
    """Called by the scheduler's script after the end: whether and how the job goes on."""
    nodes = {UNHEALTHY: dict(unhealthy), "excluded": list(excluded), "kept": list(kept)}
    decision = {"how": how, **nodes, "stopped": stopped}
    _append(output, {"event": "next", **decision})


def _append(output: Path, entry: dict[str, object]) -> None:
    with (output / JOBS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": datetime.now().isoformat(timespec=PRECISION), **entry}) + "\n")


def _entries(output: Path) -> list[dict]:
    """Every recorded event, oldest first. A last line that was cut off does not count."""
    path = output / JOBS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _unhealthy_nodes(entry: dict) -> Mapping[str, str]:
    """The nodes that an event names as unhealthy, under the key of this version or of those before."""
    return entry[UNHEALTHY] if UNHEALTHY in entry else entry[UNHEALTHY_BEFORE]


def read_attempts(output: Path) -> list[Attempt]:
    """Every recorded start, oldest first. An event belongs to the start before it. A start without an end was killed,
    or is running."""
    found: list[Attempt] = []
    for entry in _entries(output):
        time = datetime.fromisoformat(entry["time"])
        match entry["event"]:
            case "start":
                names = tuple(entry["nodes"])
                found.append(Attempt(entry["job"], entry["restart"], names, time, entry["step"]))
            case "end":
                ending = {"last_step": entry["step"], "status": entry["status"], "unhealthy": _unhealthy_nodes(entry)}
                found[-1] = replace(found[-1], ended=time, **ending)
            case "next":
                found[-1] = replace(
                    found[-1],
                    how=entry["how"],
                    unhealthy=_unhealthy_nodes(entry),
                    excluded=tuple(entry["excluded"]),
                    kept=tuple(entry["kept"]),
                    stopped=entry["stopped"],
                )
    return found


def read_submissions(output: Path) -> list[SubmittedJob]:
    """Every job that `nld launch` submitted for this run, oldest first."""
    entries = [entry for entry in _entries(output) if entry["event"] == "submitted"]
    return [SubmittedJob(entry["job"], datetime.fromisoformat(entry["time"]), entry["export"]) for entry in entries]


def first_recorded_time(output: Path) -> datetime | None:
    """When the run was first submitted or started; None where neither ever happened."""
    entries = _entries(output)
    return datetime.fromisoformat(entries[0]["time"]) if entries else None


def starts_without_progress(found: Sequence[Attempt], job: str, step: int) -> int:
    """How many starts of this job, counted back from the newest, saved no new step. step: the newest saved now."""
    count, reached = 0, step
    for attempt in reversed(found):
        last = reached if attempt.last_step is None else attempt.last_step
        if attempt.job != job or last > attempt.first_step:
            break
        count, reached = count + 1, attempt.first_step
    return count
