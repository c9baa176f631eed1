"""The nodes of a run meet before its ranks start: what each has, how its clock goes, and whether their ranks reach each
other. The first node leads, and every node leaves with the same verdict."""

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
    """Seconds."""

    arrival: float = 600.0  # from the first node's arrival to the last one's
    answer: float = 60.0  # one rank waits so long for the others in an all-reduce


@dataclass(frozen=True)
class RendezvousVerdict:
    """What every node leaves with. All empty: the ranks may start."""

    refused: str = ""  # the first node's reason at the door
    unhealthy: Mapping[str, str] = field(default_factory=dict)  # name of a node -> what was found, and expected
    gpus: int = 0  # on each node
    skew: float = 0.0  # largest distance of a clock from the first node's, in seconds
    seconds: float = 0.0  # that it took

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
    """Every node calls this; none returns before the verdict. clock: this node's, in seconds."""
    leads, began = nodes.here == 0, time.monotonic()
    arrival = timedelta(seconds=limits.arrival)
    try:
        store = TCPStore(nodes.host, nodes.check_port, is_master=leads, timeout=arrival, wait_for_workers=False)
        member = RendezvousMember(store, nodes, wanted.ranks, limits, clock)
        member.tell("facts", asdict(facts))
        if not leads:
            return RendezvousVerdict(**member.follow())
    except DistError as error:
        reason = str(error).splitlines()[0]
        return RendezvousVerdict(
            unhealthy={nodes.labels[0]: f"not to be met at {nodes.host}:{nodes.check_port}: {reason}"}
        )
    verdict = RendezvousCoordinator(member, wanted).lead(began)
    member.order({"verdict": asdict(verdict)})
    member.tell("leaves", None)
    member.heard("leaves", limits.answer)  # the store ends with this process's part in it
    return verdict


class RendezvousMember:
    """One node's part."""

    def __init__(
        self, store: Store, nodes: Nodes, ranks: int, limits: RendezvousLimits, clock: Callable[[], float]
    ) -> None:
        self.store, self.nodes, self.ranks, self.limits, self.clock = store, nodes, ranks, limits, clock
        self.orders = 0

    def tell(self, what: str, content: object) -> None:
        self.store.set(f"{what}/{self.nodes.here}", json.dumps(content))

    def order(self, order: object) -> None:
        """The first node's word to all."""
        self.store.set(f"order/{self.orders}", json.dumps(order))
        self.orders += 1

    def heard(self, what: str, seconds: float) -> dict[int, object]:
        """What each node has told, without those that have not in this time."""
        found, deadline = {}, time.monotonic() + seconds
        for node in range(self.nodes.count):
            key = f"{what}/{node}"
            try:
                self.store.wait([key], timedelta(seconds=max(0.001, deadline - time.monotonic())))
            except DistError:
                continue
            found[node] = json.loads(self.store.get(key))
        return found

    def follow(self) -> dict:
        """Do as the first node says until it gives the verdict. Raises: DistError where it is gone."""
        while True:
            key = f"order/{self.orders}"
            self.store.wait([key], timedelta(seconds=self.patience()))
            order, self.orders = json.loads(self.store.get(key)), self.orders + 1
            if "verdict" in order:
                self.tell("leaves", None)
                return order["verdict"]
            if "clock" in order:
                self.show_clock()
            else:
                self.try_links(order["try"], order["groups"], order["gpus"])

    def patience(self) -> float:
        """Seconds until the next order at most: the arrival of all, or the longest all-reduce."""
        return self.limits.arrival + 4 * self.limits.answer

    def show_clock(self) -> None:
        """Answer at one's turn, at once."""
        self.store.wait([f"turn/{self.nodes.here}"], timedelta(seconds=self.patience()))
        self.tell("clock", self.clock())

    def try_links(self, name: str, groups: Groups, gpus: bool) -> None:
        nodes = self.nodes
        links = NodeLinks(nodes.host, nodes.check_port, nodes.here, self.ranks, gpus, self.limits.answer)
        self.tell(name, links.try_group(name, groups))


class RendezvousCoordinator:
    """The first node's part."""

    def __init__(self, member: RendezvousMember, wanted: NodeRequirements) -> None:
        self.member, self.wanted = member, wanted
        self.nodes, self.limits = member.nodes, member.limits

    def lead(self, began: float) -> RendezvousVerdict:
        """NodeFacts, clocks, links: what is wrong ends the meeting."""
        told = self.member.heard("facts", self.limits.arrival)
        facts = {node: NodeFacts(**content) for node, content in told.items()}  # type: ignore[arg-type]
        if facts[0].refused:
            return RendezvousVerdict(refused=facts[0].refused)
        absent = f"did not come within {self.limits.arrival:g} s of the first node"
        unhealthy = {node: absent for node in range(self.nodes.count) if node not in facts}
        skews = self.skews(list(facts)[1:])
        needed = self.wanted.gpus
        if needed is None:
            needed = self.wanted.ranks if facts[0].gpus else 0
        for node, found in facts.items():
            wrong = node_problems(found, self.wanted, needed, skews.get(node, 0.0))
            if wrong:
                unhealthy[node] = "; ".join(wrong)
        if not unhealthy:
            unhealthy = self.links(needed > 0)
        return RendezvousVerdict(
            unhealthy={self.nodes.labels[node]: unhealthy[node] for node in sorted(unhealthy)},
            gpus=min(found.gpus for found in facts.values()),
            skew=max(map(abs, skews.values()), default=0.0),
            seconds=time.monotonic() - began,
        )

    def skews(self, others: Sequence[int]) -> dict[int, float]:
        """Node -> seconds its clock is ahead at least, as asking takes time too; inf where no answer comes."""
        member, found = self.member, {}
        member.order({"clock": True})
        for node in others:
            asked, key = member.clock(), f"clock/{node}"
            member.store.set(f"turn/{node}", "")
            try:
                member.store.wait([key], timedelta(seconds=self.limits.answer))
            except DistError:
                found[node] = math.inf
                continue
            heard = member.clock()
            ahead = json.loads(member.store.get(key)) - (asked + heard) / 2
            found[node] = math.copysign(max(0.0, abs(ahead) - (heard - asked) / 2), ahead)
        return found

    def links(self, gpus: bool) -> dict[int, str]:
        """Nodes that do not add up with the others, and why."""
        count = self.nodes.count
        failed = self.tried("all", all_nodes_together(count), gpus)
        if not failed or count == 1:
            return {node: f"{LINKS} of its ranks: {reason}" for node, reason in failed.items()}
        by_itself = self.tried("own", each_node_alone(count), gpus)
        if by_itself:
            return {node: f"{LINKS} of its own ranks: {reason}" for node, reason in by_itself.items()}
        reasons = failed if count == 2 else self.neighbours(gpus)
        named = {node: f"{LINKS} with its neighbours: {reason}" for node, reason in reasons.items()}
        # Every two add up and all together do not: nobody's fault alone, and no reason to train.
        return named or {node: f"{LINKS} of all nodes, not of any two: {reason}" for node, reason in failed.items()}

    def neighbours(self, gpus: bool) -> dict[int, str]:
        """Nodes that reach neither neighbour."""
        apart: dict[frozenset[int], str] = {}
        for number, groups in enumerate(ring_pairs(self.nodes.count)):
            failed = self.tried(f"pairs{number}", groups, gpus)
            apart |= {frozenset(pair): failed[node] for pair in groups for node in pair if node in failed}
        return unreachable_nodes(self.nodes.count, apart)

    def tried(self, name: str, groups: Groups, gpus: bool) -> dict[int, str]:
        """Node -> reason, for those of an all-reduce that failed."""
        groups = [list(group) for group in groups]
        self.member.order({"try": name, "groups": groups, "gpus": gpus})
        self.member.try_links(name, groups, gpus)
        told = self.member.heard(name, 2 * self.limits.answer)
        absent = {node: "no answer" for node in range(self.nodes.count) if node not in told}
        return absent | {node: str(reason) for node, reason in told.items() if reason}
