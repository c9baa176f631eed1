"""One rank of a run whose ranks a torchrun starts that is not our own, such as nemo-run's.

Each process of it is given the same `nld train`. The first rank does what the launcher does, at the door and at the
end, and tells the others when the output folder is ready; then every rank is the process that `nld train` starts.
"""

import os
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import PrefixStore, Store, rendezvous

from nld_train.config import RunConfig, require
from nld_train.errors import UserError
from nld_train.exit_status import FINISHED, REFUSED, STOPPED
from nld_train.node_check.nodes import NAMES, PATIENCE, Nodes
from nld_train.signals import die_with_parent
from nld_train.start.start_run import start_run, train_ranks
from nld_train.start.torchrun import rank_command, rank_environment

KEY = "what the first rank found"
READY = "ready"  # the ranks may start; any other word is the exit status of all


def start_foreign_rank(run: RunConfig) -> int:
    """This rank's exit status; a rank that trains and is not the first becomes another program and does not return.

    torchrun takes every status but 0 for a failure, so a run that stopped as asked ends with 0 as well: the run's
    jobs.jsonl tells the two apart. Raises: UserError on the first rank.
    """
    nodes = torchrun_nodes(os.environ)
    store = _open_store()
    if os.environ["RANK"] == "0":
        return _start_first_rank(run, nodes, store)
    word = store.get(KEY).decode()
    if word != READY:
        return int(word)
    del store  # its connection would stay open in the next program
    command = rank_command(run)
    os.execve(command[0], command, {**os.environ, **rank_environment(run)})


def torchrun_nodes(variables: Mapping[str, str]) -> Nodes:
    """The nodes as torchrun numbers them: the first rank is on the first. Their names, where a scheduler's script gives
    them, are for the record, and in its own order."""
    count = int(variables["WORLD_SIZE"]) // int(variables["LOCAL_WORLD_SIZE"])
    return Nodes(count, int(variables["GROUP_RANK"]), names=tuple(variables.get(NAMES, "").split()))


def _open_store() -> Store:
    """Where torchrun's ranks leave word for each other; who asks for a word waits for it."""
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=PATIENCE)))
    return PrefixStore("nld train", store)


def _start_first_rank(run: RunConfig, nodes: Nodes, store: Store) -> int:
    """The first rank: the doors, the output folder, the record of the start and of the end."""

    def train(prepared: RunConfig, nodes: Nodes) -> int:
        store.set(KEY, READY)
        return train_ranks(prepared, nodes, rank_command(prepared))

    die_with_parent()
    try:
        check_torchrun_size(run, int(os.environ["WORLD_SIZE"]))
        status = start_run(run, nodes, train)
    except UserError:
        store.set(KEY, str(REFUSED))
        raise
    if not store.check([KEY]):
        store.set(KEY, str(FINISHED))
    return FINISHED if status == STOPPED else status


def check_torchrun_size(run: RunConfig, ranks: int) -> None:
    """Refuse a torchrun of other ranks than the run is planned for. Raises UserError."""
    size = run.parallel.world_size
    do = f"start {size} ranks in all, or set parallel.world_size={ranks}"
    require(size == ranks, f"{run.name} on {ranks} ranks of torchrun", f"parallel.world_size={size}", do)
