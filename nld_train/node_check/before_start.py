"""Before a run starts on its nodes: would each node refuse it, and is each node healthy?"""

import logging
import os
from collections.abc import Mapping
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
from nld_train.run_folder.output_lock import check_output_free
from nld_train.run_folder.restart_limit import check_restart_limit

logger = logging.getLogger(__name__)
GPUS = "NLD_GPUS_PER_NODE"  # variable that the site file sets


def check_nodes_before_start(run: RunConfig, nodes: Nodes) -> int | None:
    """Check the nodes together; every node calls this.

    Returns: the exit status of a run that must not start, or None where it may. The first node says what is wrong, and
    adds an unhealthy node to the run's record, so that the job can be queued again without it.
    """
    verdict = nodes_verdict(run, nodes, start_refusal(run, nodes))
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
    """Check the nodes together without a start; every node calls this, and nothing is recorded.

    Returns: what the first node prints, "" on the others, and the exit status.
    """
    verdict = nodes_verdict(run, nodes, data_refusal(run))
    status = FINISHED if verdict.healthy else REFUSED if verdict.refused else UNHEALTHY_NODE
    if not nodes.first:
        return "", status
    if verdict.refused:
        return f"{verdict.refused}\n", status
    found = {name: f"FAIL  {why}" for name, why in verdict.unhealthy.items()}
    lines = [f"{name}  {found.get(name, 'ok')}" for name in nodes.labels]
    summary = _healthy_text(run, nodes, verdict) if verdict.healthy else "a run would fail"
    return "\n".join([*lines, summary, ""]), status


def start_refusal(run: RunConfig, nodes: Nodes) -> str:
    """Why the start checks of this node refuse the run, or "".

    Every node must be able to read the data. The output folder and the record are one for all, so the first node alone
    looks at them.
    """
    refusal = data_refusal(run)
    if refusal or not nodes.first:
        return refusal
    try:
        check_start(run)
        check_restart_limit(run)
        check_output_free(Path(run.output))
    except UserError as error:
        return str(error)
    return ""


def data_refusal(run: RunConfig) -> str:
    """Why the run's data would be refused on this node, or ""."""
    try:
        check_run_data(run)
    except UserError as error:
        return str(error)
    return ""


def nodes_verdict(run: RunConfig, nodes: Nodes, refusal: str) -> RendezvousVerdict:
    """What all nodes agree on; every node calls this. refusal: why this node refuses the run, or ""."""
    wanted = node_requirements(run, nodes, os.environ)
    return hold_rendezvous(nodes, read_node_facts(wanted, refusal), wanted, RendezvousLimits())


def node_requirements(run: RunConfig, nodes: Nodes, environment: Mapping[str, str]) -> NodeRequirements:
    """What the run needs of every node: the GPUs that the site file promises, and disk space for one checkpoint."""
    gpus = environment.get(GPUS, "")
    size = checkpoint_size(run).total
    return NodeRequirements(run.output, nodes.ranks(run), size, int(gpus) if gpus else None)


def _healthy_text(run: RunConfig, nodes: Nodes, verdict: RendezvousVerdict) -> str:
    gpus = f"{verdict.gpus} GPUs each" if verdict.gpus else "no GPUs"
    return (
        f"{nodes.count} healthy node(s): {gpus}, all-reduce of {run.parallel.world_size} ranks is right, clocks within "
        f"{verdict.skew:.1f} s ({verdict.seconds:.1f} s)"
    )
