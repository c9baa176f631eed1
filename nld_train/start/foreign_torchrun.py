"""One rank of a run whose ranks are started by a torchrun that is not our own, such as nemo-run's.

That torchrun starts the same `nld train` once for every rank. The first rank does what our own start does: it makes the
start checks, prepares the output folder, tells the other ranks that it is ready, and records the end. Then every rank
becomes the process that `nld train` would have started.
"""

import os
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import PrefixStore, Store, rendezvous

from nld_train.config import RunConfig, require
from nld_train.exit_status import FINISHED, REFUSED, STOPPED
from nld_train.node_check.nodes import NAMES, PATIENCE, Nodes
from nld_train.signals import die_with_parent
from nld_train.start.start_run import check_on_this_node, start_first_node
from nld_train.start.torchrun import rank_command, rank_environment

KEY = "what the first rank found"
READY = "ready"  # the ranks may start; any other value is the exit status of all ranks


def start_foreign_rank(run: RunConfig) -> int:
    """Return this rank's exit status; a rank that trains and is not the first becomes another program instead.

    torchrun takes every status but 0 for a failure, so a run that stopped as asked ends with 0 as well: the run's
    jobs.jsonl tells the two apart. Raises: UserError on the first rank.
    """
    nodes = torchrun_nodes(os.environ)
    store = _open_store()
    if os.environ["RANK"] == "0":
        return _start_first_rank(run, nodes, store)
    answer = store.get(KEY).decode()
    if answer != READY:
        return int(answer)
    del store  # its connection would stay open in the next program
    command = rank_command(run)
    os.execve(command[0], command, {**os.environ, **rank_environment(run)})


def torchrun_nodes(variables: Mapping[str, str]) -> Nodes:
    """The nodes as torchrun numbers them: the first rank is on the first node.

    Their names, where a scheduler's script gives them, serve the record alone, because they keep the scheduler's order.
    """
    count = int(variables["WORLD_SIZE"]) // int(variables["LOCAL_WORLD_SIZE"])
    return Nodes(count, int(variables["GROUP_RANK"]), names=tuple(variables.get(NAMES, "").split()))


def _open_store() -> Store:
    """The store that the ranks of torchrun share; reading a key waits until some rank has set it."""
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=PATIENCE)))
    return PrefixStore("nld train", store)


def _start_first_rank(run: RunConfig, nodes: Nodes, store: Store) -> int:
    """Prepare the run, let the other ranks go on, train this rank, and record the end; returns its exit status."""
    die_with_parent()
    answer = str(REFUSED)

    def announce(starts: bool) -> None:
        nonlocal answer
        answer = READY if starts else str(FINISHED)
        store.set(KEY, answer)

    try:
        check_torchrun_size(run, int(os.environ["WORLD_SIZE"]))
        check_on_this_node(run, nodes)
        status = start_first_node(run, nodes, rank_command, announce)
    finally:
        if answer != READY:
            store.set(KEY, answer)
    return FINISHED if status == STOPPED else status


def check_torchrun_size(run: RunConfig, ranks: int) -> None:
    """Refuse a torchrun that starts another number of ranks than the run is planned for. Raises: UserError."""
    size = run.parallel.world_size
    do = f"start {size} ranks in all, or set parallel.world_size={ranks}"
    require(size == ranks, f"{run.name} on {ranks} ranks of torchrun", f"parallel.world_size={size}", do)
