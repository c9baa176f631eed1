"""OUTPUT/jobs.jsonl: every start of a run, and how it ended; what `nld jobs` shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

JOBS = "jobs.jsonl"
SECONDS = "seconds"  # precision of the times written


@dataclass(frozen=True)
class Attempt:
    """One start of a run, by a scheduler's job or by hand."""

    job: str  # Slurm's number; "" without Slurm
    restart: int  # how often Slurm had queued that job again
    nodes: int
    began: datetime
    first_step: int  # that it resumed at
    ended: datetime | None = None  # None: still running, or killed
    last_step: int | None = None  # of the newest checkpoint when it ended
    status: int | None = None  # exit status


def record_start(output: Path, step: int, nodes: int, environment: Mapping[str, str]) -> None:
    """Called on the first node, before the ranks start."""
    job, restart = environment.get("SLURM_JOB_ID", ""), int(environment.get("SLURM_RESTART_COUNT", "0"))
    _append(output, {"event": "start", "job": job, "restart": restart, "nodes": nodes, "step": step})


def record_end(output: Path, step: int, status: int) -> None:
    """Called on the first node, after the ranks have ended."""
    _append(output, {"event": "end", "step": step, "status": status})


def _append(output: Path, entry: dict[str, object]) -> None:
    with (output / JOBS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": datetime.now().isoformat(timespec=SECONDS), **entry}) + "\n")


def attempts(output: Path) -> list[Attempt]:
    """Every recorded start, oldest first. An end belongs to the start before it; a start without one was killed, or is
    running. A last line that was cut off does not count."""
    path = output / JOBS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    found: list[Attempt] = []
    for entry in (json.loads(line) for line in lines if line.endswith("\n")):
        time = datetime.fromisoformat(entry["time"])
        if entry["event"] == "start":
            found.append(Attempt(entry["job"], entry["restart"], entry["nodes"], time, entry["step"]))
        else:
            found[-1] = replace(found[-1], ended=time, last_step=entry["step"], status=entry["status"])
    return found
