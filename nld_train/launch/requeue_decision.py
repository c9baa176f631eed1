"""After a run has left before its last step: is its job queued again, and without which nodes?

The job's script asks (`nld requeue`) and acts, because Slurm's commands are not in containers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nld_train.config import require
from nld_train.run_folder.attempts import (
    Attempt,
    current_job,
    read_attempts,
    record_end,
    record_requeue_decision,
    record_start,
    starts_without_progress,
)
from nld_train.run_folder.checkpoints import step_reached
from nld_train.run_folder.restart_limit import read_restart_limit, restart_limit_refusal

HOW = ("left", "preempted", "timeout", "cancelled", "requeued")
SILENT = "it does not answer, or nld does not start there"
# Slurm's states of nodes that jobs do not come to, long and without their marks.
AWAY = ("down", "drained", "draining", "drain", "fail", "failing", "error", "unknown", "maint", "reserved", "future")
NOT_RESPONDING = "*"  # Slurm's mark of a node that does not answer


@dataclass(frozen=True)
class AttemptEnd:
    """What the script knows of the end of a start."""

    status: int  # of srun, the highest of all nodes
    how: str  # left: by itself; requeued: Slurm has queued the job again; see HOW
    nodes: tuple[str, ...]  # of the job
    silent: tuple[str, ...]  # those of them that no longer answer
    left_out: tuple[str, ...]  # nodes that the job is queued without already
    partition: Mapping[str, str]  # node -> state, of every node of the partition


@dataclass(frozen=True)
class RequeueDecision:
    """How the job goes on."""

    stopped: str  # why it does not; "" where it does
    excluded: tuple[str, ...]  # nodes to leave out, beside those that are
    kept: tuple[str, ...]  # nodes that failed, and without which the job could not run
    unhealthy: Mapping[str, str]  # node -> why, of all that failed


def parse_node_states(text: str) -> dict[str, str]:
    """Node -> state from lines "NAME STATE" of sinfo. Raises: UserError."""
    pairs = [line.split() for line in text.splitlines() if line.strip()]
    well = all(len(pair) == 2 for pair in pairs)
    require(well, "lines that are not NAME STATE", "sinfo -h -N -o '%N %T'", "give that as input")
    return dict(pairs)


def close_attempt(output: Path, ending: AttemptEnd, environment: Mapping[str, str]) -> RequeueDecision:
    """Complete the record of the start that has ended, and decide. Raises: UserError."""
    require(ending.how in HOW, f"--how {ending.how}", ", ".join(HOW), "choose one")
    job, restart = current_job(environment)
    output.mkdir(parents=True, exist_ok=True)
    step, found = step_reached(output), read_attempts(output)
    if not found or (found[-1].job, found[-1].restart) != (job, restart):  # it ended before it could write
        before = found[-1].last_step or found[-1].first_step if found else 0
        record_start(output, before, ending.nodes, environment)
        found = read_attempts(output)
    if found[-1].ended is None:
        record_end(output, step, ending.status)
        found = read_attempts(output)
    decided = decide_requeue(output, found, ending, step, read_restart_limit(environment))
    record_requeue_decision(output, ending.how, decided.unhealthy, decided.excluded, decided.kept, decided.stopped)
    return decided


def decide_requeue(
    output: Path, found: Sequence[Attempt], ending: AttemptEnd, step: int, starts: int
) -> RequeueDecision:
    """The newest of `found` is the start that has ended. step: the newest saved; starts: see check_progress."""
    job = found[-1].job
    unhealthy = {**found[-1].unhealthy, **dict.fromkeys(lost_nodes(ending), SILENT)}
    excluded = nodes_to_exclude(list(unhealthy), ending)
    kept = tuple(name for name in unhealthy if name not in excluded)
    count = starts_without_progress(found, job, step)
    if ending.how == "cancelled":
        return RequeueDecision("cancelled", (), (), unhealthy)
    if count >= starts:
        got, _, do = restart_limit_refusal(output, job, count, step)
        return RequeueDecision(f"{got}; {do}", (), (), unhealthy)
    return RequeueDecision("", excluded, kept, unhealthy)


def lost_nodes(ending: AttemptEnd) -> list[str]:
    """Nodes of the job that do not answer the script or Slurm."""
    states = {name: ending.partition.get(name, "") for name in ending.nodes}
    return [
        name
        for name, state in states.items()
        if name in ending.silent or state.endswith(NOT_RESPONDING) or state.startswith("down")
    ]


def nodes_to_exclude(names: Collection[str], ending: AttemptEnd) -> tuple[str, ...]:
    """As many of these nodes as the job can do without: so many others must be there for it."""
    out = set(ending.left_out)
    there = {name for name, state in ending.partition.items() if name not in out and accepts_jobs(state)}
    chosen: list[str] = []
    for name in names:
        if len(there - {*chosen, name}) >= len(ending.nodes):
            chosen.append(name)
    return tuple(chosen)


def accepts_jobs(state: str) -> bool:
    """Whether jobs come to a node in this state of Slurm's."""
    return not state.endswith(NOT_RESPONDING) and state.rstrip("~#!%$@^-+").split("+")[0] not in AWAY


def requeue_message(decided: RequeueDecision) -> str:
    """For the job's log."""
    lines = [f"node {name} failed: {why}" for name, why in decided.unhealthy.items()]
    if decided.kept:
        lines.append(f"kept all the same, or the job would not have the nodes to run: {', '.join(decided.kept)}")
    if decided.excluded:
        lines.append(f"left out from now on: {', '.join(decided.excluded)}")
    lines.append(f"the chain stops: {decided.stopped}" if decided.stopped else "the same job goes on")
    return "\n".join(lines)
