"""The rendezvous of several nodes with real gloo ranks, and what the nodes find wrong with one another."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nld_train.node_check.links import ring_pairs, unreachable_nodes
from nld_train.node_check.node_facts import NodeFacts, NodeRequirements, disk_problems, node_problems, read_node_facts
from nld_train.node_check.nodes import Nodes
from nld_train.node_check.rendezvous import RendezvousLimits, RendezvousVerdict, hold_rendezvous

QUICK = RendezvousLimits(arrival=60.0, answer=8.0)
ANYTHING = {
    "output": tempfile.gettempdir(),
    "ranks": 2,
    "output_bytes": 1.0,
    "temporary_bytes": 1.0,
    "shared_bytes": 1.0,
}
NO_ONE: Mapping = {}
# A node in a process of its own; arguments: the port, what is wanted.
NODE = """
import json, sys
from nld_train.node_check.rendezvous import RendezvousLimits, hold_rendezvous
from nld_train.node_check.node_facts import NodeRequirements, read_node_facts
from nld_train.node_check.nodes import Nodes
wanted = NodeRequirements(**json.loads(sys.argv[2]))
nodes = Nodes(3, 1, "127.0.0.1:" + sys.argv[1], tuple("abc"))
limits = RendezvousLimits(arrival=200.0, answer=8.0)
print(json.dumps(dict(hold_rendezvous(nodes, read_node_facts(wanted), wanted, limits).unhealthy)))
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def gathered(
    count: int,
    wanted: NodeRequirements,
    ahead: Mapping[int, float] = NO_ONE,
    refused: Mapping[int, str] = NO_ONE,
    absent: int = 0,
    limits: RendezvousLimits = QUICK,
    port: int | None = None,
    elsewhere: Collection[int] = (),
) -> list[RendezvousVerdict]:
    """What each node leaves with, but those that are elsewhere: a thread each, two ranks on each. ahead: seconds of a
    node's clock."""
    port = port or free_port()

    def node(here: int) -> RendezvousVerdict:
        nodes = Nodes(count, here, f"127.0.0.1:{port}", tuple("abcd"[:count]))
        facts = read_node_facts(wanted, refused.get(here, ""))
        return hold_rendezvous(nodes, facts, wanted, limits, lambda: time.time() + ahead.get(here, 0.0))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(node, [here for here in range(count - absent) if here not in elsewhere]))


def test_nodes_that_are_well_start() -> None:
    verdicts = gathered(2, NodeRequirements(**ANYTHING))
    assert all(verdict.healthy for verdict in verdicts), verdicts
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].skew < 1 and verdicts[0].seconds < 10


def test_what_a_node_lacks_is_named_with_what_was_expected() -> None:
    """A clock an hour ahead, GPUs that are not there, full disks, a start that one node alone refuses: all at once,
    and told to every node."""
    wanted = NodeRequirements(**{**ANYTHING, "gpus": 8, "temporary_bytes": 1e18})
    verdicts = gathered(3, wanted, ahead={1: 3600.0}, refused={2: "no file data/mix.idx"})
    assert verdicts[0].unhealthy == verdicts[1].unhealthy == verdicts[2].unhealthy
    a, b, c = (verdicts[0].unhealthy[name] for name in "abc")
    for said in (a, b, c):
        assert "0 GPUs, expected 8" in said and f"free in {tempfile.gettempdir()}, expected" in said
    assert re.search(r"its clock is \+3(600\.0|599\.\d) s off the first node's, expected at most 5 s", b)
    assert "clock" not in a + c
    assert "refused there: no file data/mix.idx" in c and "refused" not in a + b


def test_the_first_nodes_refusal_is_everybodys() -> None:
    verdicts = gathered(2, NodeRequirements(**ANYTHING), refused={0: "another run's folder"}, ahead={1: 3600.0})
    assert [verdict.refused for verdict in verdicts] == 2 * ["another run's folder"]
    assert not any(verdict.unhealthy for verdict in verdicts)


def test_a_node_that_does_not_come_is_named() -> None:
    (verdict,) = gathered(2, NodeRequirements(**ANYTHING), absent=1, limits=RendezvousLimits(arrival=2.0, answer=2.0))
    assert verdict.unhealthy == {"b": "did not come within 2 s of the first node"}


@pytest.mark.slow
def test_a_node_with_a_broken_network_is_named_and_the_others_are_not() -> None:
    """Among three, two ranks each, the middle one's gloo is told of an interface that it does not have."""
    port = free_port()
    variables = {**os.environ, "GLOO_SOCKET_IFNAME": "nowhere"}
    command = [sys.executable, "-c", NODE, str(port), json.dumps(ANYTHING)]
    broken = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    limits = RendezvousLimits(arrival=200.0, answer=8.0)
    verdicts = gathered(3, NodeRequirements(**ANYTHING), limits=limits, port=port, elsewhere=[1])
    told, _ = broken.communicate(timeout=60)
    for unhealthy in (json.loads(told), *(dict(verdict.unhealthy) for verdict in verdicts)):
        assert list(unhealthy) == ["b"], unhealthy
        assert "all-reduce of its own ranks" in unhealthy["b"] and "nowhere" in unhealthy["b"]


def test_a_full_disk_is_found(tmp_path: Path) -> None:
    there = NodeRequirements(
        str(tmp_path / "not" / "made" / "yet"), 2, output_bytes=1.0, temporary_bytes=1.0, shared_bytes=1.0
    )
    assert disk_problems(there) == []
    full = NodeRequirements(str(tmp_path), 2, output_bytes=1e18, temporary_bytes=1.0, shared_bytes=1.0)
    (said,) = disk_problems(full)
    assert f"free in {tmp_path}, expected 1,000,000,000 GB" in said


def test_gpus_are_counted_against_the_placement() -> None:
    wanted = NodeRequirements("out", 2, 1.0)
    assert node_problems(NodeFacts(7, "", []), wanted, gpus=8, skew=0.0) == ["7 GPUs, expected 8"]
    assert node_problems(NodeFacts(8, "", []), wanted, gpus=4, skew=0.0) == []


@pytest.mark.parametrize("count", [3, 4, 5, 32])
def test_every_node_is_tried_with_both_neighbours(count: int) -> None:
    rounds = ring_pairs(count)
    for groups in rounds:
        nodes = [node for group in groups for node in group]
        assert len(nodes) == len(set(nodes)), "a node is in one group at a time"
    tried = {frozenset(group) for groups in rounds for group in groups}
    assert tried == {frozenset({node, (node + 1) % count}) for node in range(count)}
    broken = {pair: "no answer" for pair in tried if 1 in pair}
    assert unreachable_nodes(count, broken) == {1: "no answer"}
