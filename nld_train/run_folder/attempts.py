"""OUTPUT/jobs.jsonl: every start of a run, how it ended and what followed. `nld jobs` and the next start read it."""

import functools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import NoneType

from nld_train.files import unwritable_refused
from nld_train.run_folder.paths import JOBS

logger = logging.getLogger(__name__)
PRECISION = "milliseconds"  # of the recorded times
STARTS = "NLD_STARTS_WITHOUT_PROGRESS"  # variable: the restart limit
STARTS_DEFAULT = 3  # starts in a row that save no new step
UNHEALTHY, UNHEALTHY_BEFORE = "unhealthy", "unwell"  # JSON keys: as written now, and by versions before 2026-11-27
# event -> its keys and the kinds of their values
FORMS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "submitted": {"job": (str,), "export": (str, NoneType)},
    "start": {"job": (str,), "restart": (int,), "nodes": (list,), "step": (int,)},
    "end": {"step": (int,), "status": (int,), UNHEALTHY: (dict,)},
    "next": {"how": (str,), UNHEALTHY: (dict,), "excluded": (list,), "kept": (list,), "stopped": (str,)},
}
BELONGING = ("end", "next")  # events that belong to the start before them


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
    """Add a line in one write, and never to the rest of a line whose writer was killed. Raises: UserError."""
    line = json.dumps({"time": datetime.now().isoformat(timespec=PRECISION), **entry}) + "\n"
    with unwritable_refused(output), (output / JOBS).open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        torn = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if torn else b"") + line.encode())


def _entries(output: Path) -> list[dict]:
    """Every recorded event, oldest first. Lines that are torn, or that no version writes, are left out and named."""
    path = output / JOBS
    found: list[dict] = []
    wrong: list[str] = []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            _check_entry(entry)
            started = entry["event"] not in BELONGING or any(other["event"] == "start" for other in found)
            _expect(started, "it belongs to a start, and there is none before it")
            found.append(entry)
        except (ValueError, RecursionError) as error:
            wrong.append(f"line {number} ({error})")
    if wrong:
        _warn_of_left_out(path, len(wrong), wrong[0])
    return found


@functools.cache
def _warn_of_left_out(path: Path, count: int, first: str) -> None:
    """Say it once: a command reads the file several times."""
    logger.warning("%s: %d line(s) torn or of no event, left out; the first: %s", path, count, first)


def _expect(ok: bool, what: str) -> None:
    if not ok:
        raise ValueError(what)


def _check_entry(entry: object) -> None:
    """Raises: ValueError for what no version writes: another event, a key missing, a value of another kind."""
    _expect(isinstance(entry, dict) and entry.get("event") in list(FORMS), "no event of ours")
    assert isinstance(entry, dict)
    for name, kinds in {"time": (str,), **FORMS[entry["event"]]}.items():
        key = UNHEALTHY_BEFORE if name == UNHEALTHY and UNHEALTHY not in entry else name
        _expect(key in entry and isinstance(entry[key], kinds), f"{entry['event']!r} without a proper {name!r}")
        parts = entry[key] if isinstance(entry[key], list | dict) else []
        _expect(all(isinstance(part, str) for part in parts), f"{name!r} holds more than names")
    _expect(datetime.fromisoformat(entry["time"]).tzinfo is None, "a time with a zone")
    job = entry.get("job", "")
    _expect(job.isdecimal() or (not job and entry["event"] != "submitted"), f"no job's number: {job!r}")


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
