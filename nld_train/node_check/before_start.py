"""Before a run starts on its nodes: would each of them refuse it, and is each of them healthy?"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.doctor.start_checks import check_run_data, check_start
from nld_train.errors import UserError
from nld_train.exit_status import FINISHED, REFUSED, UNHEALTHY_NODE
from nld_train.node_check.node_facts import NodeRequirements, read_node_facts
from nld_train.node_check.nodes import Nodes
from nld_train.node_check.rendezvous import RendezvousLimits, RendezvousVerdict, hold_rendezvous
from nld_train.plan.memory import checkpoint_size
from nld_train.run_folder.attempts import record_end, record_start
from nld_train.run_folder.checkpoints import step_reached
from nld_train.run_folder.restart_limit import check_restart_limit

logger = logging.getLogger(__name__)
GPUS = "NLD_GPUS_PER_NODE"  # variable that the site file sets


def check_nodes_before_start(run: RunConfig, nodes: Nodes) -> int | None:
    """The exit status of a run that does not start, or None. Every node calls this.

    The first node says what is wrong, and puts it into the run's record.
    """
    verdict = nodes_verdict(
        run, nodes, [check_run_data, check_start, check_restart_limit] if nodes.first else [check_run_data]
    )
    if verdict.healthy:
        if nodes.first:
            logger.info(_healthy_text(run, nodes, verdict))
        return None
    if verdict.refused:
        if nodes.first:
            logger.error("nld: %s", verdict.refused)
        return REFUSED
    if nodes.first:
        for name, problem in verdict.unhealthy.items():
            logger.error("node %s is unhealthy: %s", name, problem)
        output = Path(run.output)
        output.mkdir(parents=True, exist_ok=True)
        step = step_reached(output)
        record_start(output, step, nodes.labels, os.environ)
        record_end(output, step, UNHEALTHY_NODE, verdict.unhealthy)
    return UNHEALTHY_NODE


def check_nodes_only(run: RunConfig, nodes: Nodes) -> tuple[str, int]:
    """The check by itself: what the first node says, "" on the others, and the exit status. Nothing is recorded."""
    verdict = nodes_verdict(run, nodes, [check_run_data])
    status = FINISHED if verdict.healthy else REFUSED if verdict.refused else UNHEALTHY_NODE
    if not nodes.first:
        return "", status
    if verdict.refused:
        return f"{verdict.refused}\n", status
    found = {name: f"FAIL  {why}" for name, why in verdict.unhealthy.items()}
    lines = [f"{name}  {found.get(name, 'ok')}" for name in nodes.labels]
    return "\n".join(
        [*lines, _healthy_text(run, nodes, verdict) if verdict.healthy else "a run would fail", ""]
    ), status


def nodes_verdict(
    run: RunConfig,
    nodes: Nodes,
    checks: Sequence[Callable[[RunConfig], None]],
    limits: RendezvousLimits | None = None,
) -> RendezvousVerdict:
    """What all nodes agree on; every one of them calls this. checks: what this node asks of the run first."""
    wanted = node_requirements(run, nodes, os.environ)
    facts = read_node_facts(wanted, _first_refusal(run, checks))
    return hold_rendezvous(nodes, facts, wanted, limits or RendezvousLimits())


def node_requirements(run: RunConfig, nodes: Nodes, environment: Mapping[str, str]) -> NodeRequirements:
    """Of every node: the GPUs that the site file promises, and room for one checkpoint."""
    gpus = environment.get(GPUS, "")
    size = checkpoint_size(run).total
    return NodeRequirements(run.output, nodes.ranks(run), size, int(gpus) if gpus else None)


def _first_refusal(run: RunConfig, checks: Sequence[Callable[[RunConfig], None]]) -> str:
    """The first check's refusal, or ""."""
    try:
        for check in checks:
            check(run)
    except UserError as error:
        return str(error)
    return ""


def _healthy_text(run: RunConfig, nodes: Nodes, verdict: RendezvousVerdict) -> str:
    gpus = f"{verdict.gpus} GPUs each" if verdict.gpus else "no GPUs"
    return (
        f"{nodes.count} node(s) well: {gpus}, all-reduce of {run.parallel.world_size} ranks right, clocks within "
        f"{verdict.skew:.1f} s ({verdict.seconds:.1f} s)"
    )
