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
from nld_train.run_folder.refusal import read_refusal
from nld_train.run_folder.restart_limit import read_restart_limit, restart_limit_refusal

CANCELLED = "cancelled"
# How a start ends: by itself (left), or as Slurm says; requeued: Slurm has queued the job again already.
WAYS_TO_END = ("left", "preempted", "timeout", CANCELLED, "requeued")
UNRESPONSIVE = "it does not answer, or nld does not start there"
# Slurm's states of nodes that no job is placed on, in their long form and without Slurm's marks.
UNAVAILABLE_STATES = (
    *("down", "drained", "draining", "drain", "fail", "failing", "error", "unknown"),
    *("maint", "reserved", "future"),
)
NOT_RESPONDING = "*"  # Slurm's mark of a node that does not answer


@dataclass(frozen=True)
class AttemptEnd:
    """What the job's script knows of the end of a start."""

    status: int  # exit status of srun, the highest of all nodes
    ended_by: str  # one of WAYS_TO_END
    nodes: tuple[str, ...]  # the nodes of the job
    unresponsive: tuple[str, ...]  # nodes of the job that no longer answer
    already_excluded: tuple[str, ...]  # nodes that the job is queued without already
    node_states: Mapping[str, str]  # node -> Slurm's state, for every node of the partition


@dataclass(frozen=True)
class RequeueDecision:
    """Whether and how the job goes on."""

    stop_reason: str  # why it does not go on; "" where it does
    excluded: tuple[str, ...]  # nodes to exclude from now on
    kept_unhealthy: tuple[str, ...]  # nodes that failed, and without which the job could not run
    unhealthy: Mapping[str, str]  # node -> why, for all nodes that failed


def parse_node_states(text: str) -> dict[str, str]:
    """Node -> state, from lines "NAME STATE" of sinfo. Raises: UserError."""
    pairs = [line.split() for line in text.splitlines() if line.strip()]
    well = all(len(pair) == 2 for pair in pairs)
    require(well, "lines that are not NAME STATE", "sinfo -h -N -o '%N %T'", "give that as input")
    return dict(pairs)


def close_attempt(output: Path, ending: AttemptEnd, environment: Mapping[str, str]) -> RequeueDecision:
    """Complete the record of the start that has ended, decide how the job goes on, and record it. Raises: UserError."""
    ways = ", ".join(WAYS_TO_END)
    require(ending.ended_by in WAYS_TO_END, f"--how {ending.ended_by}", ways, "choose one")
    job, restart = current_job(environment)
    output.mkdir(parents=True, exist_ok=True)
    step, attempts = step_reached(output), read_attempts(output)
    # 1. A start that ended before it could record itself is recorded now.
    if not attempts or (attempts[-1].job, attempts[-1].restart) != (job, restart):
        before = attempts[-1].last_step or attempts[-1].first_step if attempts else 0
        record_start(output, before, ending.nodes, environment)
        attempts = read_attempts(output)
    # 2. So is the end of a start that was killed.
    if attempts[-1].ended is None:
        record_end(output, step, ending.status)
        attempts = read_attempts(output)
    # 3. The decision is recorded too: `nld jobs` shows it, and the next start counts from it.
    decision = decide_requeue(output, attempts, ending, step, read_restart_limit(environment))
    record_requeue_decision(
        output,
        ending.ended_by,
        unhealthy=decision.unhealthy,
        excluded=decision.excluded,
        kept=decision.kept_unhealthy,
        stopped=decision.stop_reason,
    )
    return decision


def decide_requeue(
    output: Path, attempts: Sequence[Attempt], ending: AttemptEnd, step: int, restart_limit: int
) -> RequeueDecision:
    """Decide whether the job goes on, and without which nodes; nothing is written.

    attempts: the starts of the run, of which the last one has ended; step: the newest saved step; restart_limit: how
    many starts in a row may save no new step.
    """
    # 1. Which nodes failed: those that the node check found unhealthy, and those that no longer answer.
    job = attempts[-1].job
    unhealthy = {**attempts[-1].unhealthy, **dict.fromkeys(lost_nodes(ending), UNRESPONSIVE)}
    # 2. A cancelled job does not go on: somebody wanted it to end.
    if ending.ended_by == CANCELLED:
        return RequeueDecision(CANCELLED, (), (), unhealthy)
    # 3. What a rank was refused for, the next start would be refused for too.
    refusal = read_refusal(output)
    if refusal is not None:
        return RequeueDecision(f"refused: {refusal}", (), (), unhealthy)
    # 4. At the restart limit the job stops, because the next start would end as the last ones did.
    count = starts_without_progress(attempts, job, step)
    if count >= restart_limit:
        got, _, do = restart_limit_refusal(output, job, count, step)
        return RequeueDecision(f"{got}; {do}", (), (), unhealthy)
    # 5. Otherwise it goes on without the failed nodes, but for those that it could not run without.
    excluded = nodes_to_exclude(list(unhealthy), ending)
    kept = tuple(name for name in unhealthy if name not in excluded)
    return RequeueDecision("", excluded, kept, unhealthy)


def lost_nodes(ending: AttemptEnd) -> list[str]:
    """Nodes of the job that do not answer the job's script or Slurm."""
    states = {name: ending.node_states.get(name, "") for name in ending.nodes}
    return [
        name
        for name, state in states.items()
        if name in ending.unresponsive or state.endswith(NOT_RESPONDING) or state.startswith("down")
    ]


def nodes_to_exclude(names: Collection[str], ending: AttemptEnd) -> tuple[str, ...]:
    """As many of the nodes `names`, in their order, as leave the job enough others to run on."""
    out = set(ending.already_excluded)
    available = {name for name, state in ending.node_states.items() if name not in out and accepts_jobs(state)}
    chosen: list[str] = []
    for name in names:
        if len(available - {*chosen, name}) >= len(ending.nodes):
            chosen.append(name)
    return tuple(chosen)


def accepts_jobs(state: str) -> bool:
    """Whether Slurm places jobs on a node in this state, which may carry Slurm's marks and further states."""
    return not state.endswith(NOT_RESPONDING) and state.rstrip("~#!%$@^-+").split("+")[0] not in UNAVAILABLE_STATES


def requeue_message(decision: RequeueDecision) -> str:
    """The decision as lines for the job's log."""
    lines = [f"node {name} failed: {why}" for name, why in decision.unhealthy.items()]
    if decision.kept_unhealthy:
        kept = ", ".join(decision.kept_unhealthy)
        lines.append(f"kept all the same, because the job would not have the nodes to run: {kept}")
    if decision.excluded:
        lines.append(f"left out from now on: {', '.join(decision.excluded)}")
    lines.append(f"the chain stops: {decision.stop_reason}" if decision.stop_reason else "the same job goes on")
    return "\n".join(lines)
