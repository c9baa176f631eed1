"""Do the ranks of all nodes reach each other? One all-reduce among all of them tells; where it fails, all-reduces of
smaller groups tell which node is at fault."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nld_train.node_check.all_reduce import AllReduceRank, reduce_on_cpu

Groups = Sequence[Sequence[int]]  # the nodes, by number, of each all-reduce

START_SECONDS = 60  # that a process may take to import torch
MOST_CHARACTERS = 200  # longer reasons are cut


@dataclass(frozen=True)
class NodeLinks:
    """The ranks of one node."""

    host: str  # where the store of the rendezvous is
    port: int
    node_rank: int  # number of this node
    ranks: int  # on every node
    gpus: bool
    seconds: float  # how long a rank waits for the others

    def try_group(self, name: str, groups: Groups) -> str:
        """Take part in the all-reduce of this node's group. Returns: "" where it succeeded or no group has this node,
        else the reason of the first rank that failed."""
        mine = next((group for group in groups if self.node_rank in group), None)
        if mine is None:
            return ""
        first, size = mine.index(self.node_rank) * self.ranks, len(mine) * self.ranks
        group = f"{name}/{mine[0]}"
        tasks = [
            AllReduceRank(self.host, self.port, group, first + rank, size, rank if self.gpus else None, self.seconds)
            for rank in range(self.ranks)
        ]
        reasons = reduce_by_processes(tasks, self.seconds + START_SECONDS) if self.gpus else reduce_by_threads(tasks)
        failed = [f"rank {task.rank}: {reason}" for task, reason in zip(tasks, reasons, strict=True) if reason]
        return failed[0] if failed else ""


def reduce_by_threads(tasks: Sequence[AllReduceRank]) -> list[str]:
    """One all-reduce by gloo, a thread for each rank. Returns for each rank "", or why it failed."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(_attempt, tasks))


def _attempt(task: AllReduceRank) -> str:
    try:
        reduce_on_cpu(task)
    except RuntimeError as error:
        return _first_line(str(error))
    return ""


def reduce_by_processes(tasks: Sequence[AllReduceRank], seconds: float) -> list[str]:
    """One all-reduce by NCCL, a process for each rank; none of them outlives this call.

    seconds: how long they may take, the import of torch included. Returns for each rank "", or why it failed.
    """
    command = [sys.executable, "-m", "nld_train.node_check.all_reduce"]
    started = [
        subprocess.Popen([*command, task.to_json()], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for task in tasks
    ]
    deadline = time.monotonic() + seconds
    try:
        return [_wait(process, deadline - time.monotonic()) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "failed")[:MOST_CHARACTERS]


def _wait(process: subprocess.Popen[str], seconds: float) -> str:
    """Wait for a process. Returns "", or why it failed."""
    try:
        _, errors = process.communicate(timeout=max(seconds, 0))
    except subprocess.TimeoutExpired:
        return "no answer in time"
    if process.returncode == 0:
        return ""
    # The last line of a traceback names the error.
    lines = errors.strip().splitlines() or [f"ended with status {process.returncode}"]
    return _first_line(lines[-1])


def all_nodes_together(count: int) -> Groups:
    return [range(count)]


def each_node_alone(count: int) -> Groups:
    return [[node] for node in range(count)]


def ring_pairs(count: int) -> list[Groups]:
    """The pairs of neighbours in a ring of three nodes or more, in rounds: no node is twice in a round, and every node
    is in two pairs."""
    ring = [[node, (node + 1) % count] for node in range(count)]
    rounds: list[Groups] = [ring[0 : count - count % 2 : 2], ring[1 : count - count % 2 : 2]]
    return [*rounds, ring[-1:]] if count % 2 else rounds


def unreachable_nodes(count: int, failed: Mapping[frozenset[int], str]) -> dict[int, str]:
    """Node -> reason, for nodes that reach neither neighbour. failed: the pairs whose all-reduce failed, and why."""
    blamed = {}
    for node in range(count):
        both = [frozenset({node, (node + 1) % count}), frozenset({node, (node - 1) % count})]
        if all(pair in failed for pair in both):
            blamed[node] = failed[both[0]]
    return blamed
