"""The rendezvous of a run's nodes before its ranks start: what each node has, how far its clock is off, and whether the
ranks of all nodes reach each other.

Every node is a member. The first node coordinates: it gives orders, and every member carries out the same ones. All
members leave with the same verdict. They talk through a store on the first node, where each key is set once:

    facts/NODE, clock/NODE, LINK_TEST/NODE, leaves/NODE      what a member publishes
    order/NUMBER, turn/NODE                                  what the coordinator tells all members, or one of them
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta

from torch.distributed import DistError, Store, TCPStore

from nld_train.node_check.links import (
    Groups,
    NodeLinks,
    all_nodes_together,
    each_node_alone,
    ring_pairs,
    unreachable_nodes,
)
from nld_train.node_check.node_facts import NodeFacts, NodeRequirements, node_problems
from nld_train.node_check.nodes import Nodes

LINKS = "all-reduce"


@dataclass(frozen=True)
class RendezvousLimits:
    """How long the nodes wait for each other, in seconds."""

    arrival: float = 600.0  # from the first node's arrival to the last one's
    answer: float = 60.0  # that one rank waits for the others in an all-reduce


@dataclass(frozen=True)
class RendezvousVerdict:
    """What every node leaves with. The ranks may start where `refused` and `unhealthy` are both empty."""

    refused: str = ""  # why the first node's start checks refuse the run
    unhealthy: Mapping[str, str] = field(default_factory=dict)  # name of a node -> what was found, and expected
    gpus: int = 0  # on each node
    skew: float = 0.0  # largest distance of a clock from the first node's, in seconds
    seconds: float = 0.0  # that the check took

    @property
    def healthy(self) -> bool:
        return not self.refused and not self.unhealthy


def hold_rendezvous(
    nodes: Nodes,
    facts: NodeFacts,
    wanted: NodeRequirements,
    limits: RendezvousLimits,
    clock: Callable[[], float] = time.time,
) -> RendezvousVerdict:
    """Check the nodes together. Every node calls this, and none returns before the verdict.

    clock: the clock of this node, in seconds. A node that does not reach the first one gives a verdict that names it.
    """
    began, arrival = time.monotonic(), timedelta(seconds=limits.arrival)
    try:
        store = TCPStore(nodes.host, nodes.check_port, is_master=nodes.first, timeout=arrival, wait_for_workers=False)
        member = RendezvousMember(store, nodes, wanted.ranks, limits, clock)
        member.publish("facts", asdict(facts))
        if not nodes.first:
            return RendezvousVerdict(**member.follow_orders())
    except DistError as error:
        reason = str(error).splitlines()[0]
        unreached = f"no rendezvous at {nodes.host}:{nodes.check_port}: {reason}"
        return RendezvousVerdict(unhealthy={nodes.labels[0]: unreached})
    verdict = RendezvousCoordinator(member, wanted).coordinate(began)
    member.broadcast({"verdict": asdict(verdict)})
    member.publish("leaves", None)
    member.wait_for("leaves", limits.answer)  # the store ends with this process, so the others leave first
    return verdict


class RendezvousMember:
    """What every node does, the first one too."""

    def __init__(
        self, store: Store, nodes: Nodes, ranks: int, limits: RendezvousLimits, clock: Callable[[], float]
    ) -> None:
        """ranks: number of ranks on each node; clock: the clock of this node, in seconds."""
        self.store, self.nodes, self.ranks, self.limits, self.clock = store, nodes, ranks, limits, clock
        self.orders = 0

    def publish(self, what: str, content: object) -> None:
        """Let the other nodes read this node's answer; `content` is anything that JSON holds."""
        self.store.set(f"{what}/{self.nodes.node_rank}", json.dumps(content))

    def broadcast(self, order: object) -> None:
        """Give every node its next order. The first node alone calls this."""
        self.store.set(f"order/{self.orders}", json.dumps(order))
        self.orders += 1

    def wait_for(self, what: str, seconds: float) -> dict[int, object]:
        """Node number -> what it has published, without the nodes that have not within `seconds`."""
        found, deadline = {}, time.monotonic() + seconds
        for node in range(self.nodes.count):
            key = f"{what}/{node}"
            try:
                self.store.wait([key], timedelta(seconds=max(0.001, deadline - time.monotonic())))
            except DistError:
                continue
            found[node] = json.loads(self.store.get(key))
        return found

    def follow_orders(self) -> dict:
        """Carry out the first node's orders until one is the verdict, and return that. Raises: DistError where the
        first node is gone."""
        while True:
            key = f"order/{self.orders}"
            self.store.wait([key], timedelta(seconds=self.seconds_left()))
            order, self.orders = json.loads(self.store.get(key)), self.orders + 1
            if "verdict" in order:
                self.publish("leaves", None)
                return order["verdict"]
            if "clock" in order:
                self.publish_clock()
            else:
                self.try_group_links(order["try"], order["groups"], order["gpus"])

    def seconds_left(self) -> float:
        """Seconds until the next order at most: all nodes arrive, or the longest all-reduce ends."""
        return self.limits.arrival + 4 * self.limits.answer

    def publish_clock(self) -> None:
        """Publish this node's time at once when its turn comes: any delay would look like a wrong clock."""
        self.store.wait([f"turn/{self.nodes.node_rank}"], timedelta(seconds=self.seconds_left()))
        self.publish("clock", self.clock())

    def try_group_links(self, name: str, groups: Groups, gpus: bool) -> None:
        """Take part in the all-reduce of this node's group, and publish under `name` how it ended."""
        nodes = self.nodes
        links = NodeLinks(nodes.host, nodes.check_port, nodes.node_rank, self.ranks, gpus, self.limits.answer)
        self.publish(name, links.try_group(name, groups))


class RendezvousCoordinator:
    """What the first node does beside its part as a member: it gives the orders and judges the answers."""

    def __init__(self, member: RendezvousMember, wanted: NodeRequirements) -> None:
        self.member, self.wanted = member, wanted
        self.nodes, self.limits = member.nodes, member.limits

    def coordinate(self, began: float) -> RendezvousVerdict:
        """Judge the nodes. began: when the rendezvous was opened, by time.monotonic()."""
        # 1. Wait for every node. Where the first one refuses the run, nothing else matters.
        published = self.member.wait_for("facts", self.limits.arrival)
        facts = {node: NodeFacts(**content) for node, content in published.items()}  # type: ignore[arg-type]
        if facts[0].refused:
            return RendezvousVerdict(refused=facts[0].refused)
        absent = f"did not come within {self.limits.arrival:g} s of the first node"
        unhealthy = {node: absent for node in range(self.nodes.count) if node not in facts}
        # 2. Compare the clocks of those that came.
        skews = self.clock_skews(list(facts)[1:])
        # 3. Compare what each node has with what the run needs of it.
        needed = self.wanted.gpus
        if needed is None:
            needed = self.wanted.ranks if facts[0].gpus else 0
        for node, found in facts.items():
            wrong = node_problems(found, self.wanted, needed, skews.get(node, 0.0))
            if wrong:
                unhealthy[node] = "; ".join(wrong)
        # 4. Try the links, last: an all-reduce with an absent or unfit node would only wait for its time limit.
        if not unhealthy:
            unhealthy = self.check_links(needed > 0)
        return RendezvousVerdict(
            unhealthy={self.nodes.labels[node]: unhealthy[node] for node in sorted(unhealthy)},
            gpus=min(found.gpus for found in facts.values()),
            skew=max(map(abs, skews.values()), default=0.0),
            seconds=time.monotonic() - began,
        )

    def clock_skews(self, others: Sequence[int]) -> dict[int, float]:
        """Node -> seconds that its clock is ahead at least; inf where no answer comes.

        The answer is compared with the middle of the time that asking took, and half of that time is forgiven.
        """
        member, found = self.member, {}
        member.broadcast({"clock": True})
        for node in others:
            asked, key = member.clock(), f"clock/{node}"
            member.store.set(f"turn/{node}", "")
            try:
                member.store.wait([key], timedelta(seconds=self.limits.answer))
            except DistError:
                found[node] = math.inf
                continue
            answered = member.clock()
            ahead = json.loads(member.store.get(key)) - (asked + answered) / 2
            found[node] = math.copysign(max(0.0, abs(ahead) - (answered - asked) / 2), ahead)
        return found

    def check_links(self, gpus: bool) -> dict[int, str]:
        """Nodes whose all-reduce with the others fails, and why. gpus: by NCCL instead of gloo."""
        count = self.nodes.count
        # 1. All nodes together. Where that works, no other test is needed.
        failed = self.run_groups("all", all_nodes_together(count), gpus)
        if not failed or count == 1:
            return {node: f"{LINKS} of its ranks: {reason}" for node, reason in failed.items()}
        # 2. Each node alone: a node whose own ranks fail is the culprit.
        alone = self.run_groups("own", each_node_alone(count), gpus)
        if alone:
            return {node: f"{LINKS} of its own ranks: {reason}" for node, reason in alone.items()}
        # 3. Neighbours in a ring: a node that reaches neither neighbour is the culprit.
        reasons = failed if count == 2 else self.check_neighbours(gpus)
        named = {node: f"{LINKS} with its neighbours: {reason}" for node, reason in reasons.items()}
        # 4. Every two work and all together do not: no single node is at fault, and the run cannot train.
        return named or {node: f"{LINKS} of all nodes, not of any two: {reason}" for node, reason in failed.items()}

    def check_neighbours(self, gpus: bool) -> dict[int, str]:
        """Nodes that reach neither neighbour, and why."""
        apart: dict[frozenset[int], str] = {}
        for number, groups in enumerate(ring_pairs(self.nodes.count)):
            failed = self.run_groups(f"pairs{number}", groups, gpus)
            apart |= {frozenset(pair): failed[node] for pair in groups for node in pair if node in failed}
        return unreachable_nodes(self.nodes.count, apart)

    def run_groups(self, name: str, groups: Groups, gpus: bool) -> dict[int, str]:
        """Have every group make one all-reduce. Returns: node -> reason, for the nodes whose all-reduce failed."""
        groups = [list(group) for group in groups]
        self.member.broadcast({"try": name, "groups": groups, "gpus": gpus})
        self.member.try_group_links(name, groups, gpus)
        published = self.member.wait_for(name, 2 * self.limits.answer)
        absent = {node: "no answer" for node in range(self.nodes.count) if node not in published}
        return absent | {node: str(reason) for node, reason in published.items() if reason}
