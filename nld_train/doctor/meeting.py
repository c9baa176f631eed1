"""The nodes of a run meet before its ranks start: what each has, how its clock goes, and whether their ranks reach each
other. The first node leads, and every node leaves with the same verdict."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta

from torch.distributed import DistError, Store, TCPStore

from nld_train.doctor.links import Groups, Links, alone, cut_off, everybody, pairs
from nld_train.doctor.node import Facts, Wanted, problems

LINKS = "all-reduce"


@dataclass(frozen=True)
class Party:
    """Who meets where."""

    host: str  # the first node
    port: int
    count: int  # nodes
    here: int  # number of this one, from 0
    ranks: int  # on each
    names: tuple[str, ...]  # by number


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    arrival: float = 600.0  # from the first node's arrival to the last one's
    answer: float = 60.0  # one rank waits so long for the others in an all-reduce


@dataclass(frozen=True)
class Verdict:
    """What every node leaves with. All empty: the ranks may start."""

    refused: str = ""  # the first node's reason at the door
    unwell: Mapping[str, str] = field(default_factory=dict)  # name of a node -> what was found, and expected
    gpus: int = 0  # on each node
    skew: float = 0.0  # largest distance of a clock from the first node's, in seconds
    seconds: float = 0.0  # that it took

    @property
    def well(self) -> bool:
        return not self.refused and not self.unwell


def meet(party: Party, facts: Facts, wanted: Wanted, limits: Limits, clock: Callable[[], float] = time.time) -> Verdict:
    """Every node calls this; none returns before the verdict. clock: this node's, in seconds."""
    leads, began = party.here == 0, time.monotonic()
    arrival = timedelta(seconds=limits.arrival)
    try:
        store = TCPStore(party.host, party.port, is_master=leads, timeout=arrival, wait_for_workers=False)
        visitor = Visitor(store, party, limits, clock)
        visitor.tell("facts", asdict(facts))
        if not leads:
            return Verdict(**visitor.follow())
    except DistError as error:
        reason = str(error).splitlines()[0]
        return Verdict(unwell={party.names[0]: f"not to be met at {party.host}:{party.port}: {reason}"})
    verdict = Leader(visitor, wanted).lead(began)
    visitor.order({"verdict": asdict(verdict)})
    visitor.tell("bye", None)
    visitor.heard("bye", limits.answer)  # the store ends with this process's part in it
    return verdict


class Visitor:
    """One node's part."""

    def __init__(self, store: Store, party: Party, limits: Limits, clock: Callable[[], float]) -> None:
        self.store, self.party, self.limits, self.clock = store, party, limits, clock
        self.orders = 0

    def tell(self, what: str, content: object) -> None:
        self.store.set(f"{what}/{self.party.here}", json.dumps(content))

    def order(self, order: object) -> None:
        """The first node's word to all."""
        self.store.set(f"order/{self.orders}", json.dumps(order))
        self.orders += 1

    def heard(self, what: str, seconds: float) -> dict[int, object]:
        """What each node has told, without those that have not in this time."""
        found, deadline = {}, time.monotonic() + seconds
        for node in range(self.party.count):
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
                self.tell("bye", None)
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
        self.store.wait([f"turn/{self.party.here}"], timedelta(seconds=self.patience()))
        self.tell("clock", self.clock())

    def try_links(self, name: str, groups: Groups, gpus: bool) -> None:
        party = self.party
        links = Links(party.host, party.port, party.here, party.ranks, gpus, self.limits.answer)
        self.tell(name, links.try_group(name, groups))


class Leader:
    """The first node's part."""

    def __init__(self, visitor: Visitor, wanted: Wanted) -> None:
        self.visitor, self.wanted = visitor, wanted
        self.party, self.limits = visitor.party, visitor.limits

    def lead(self, began: float) -> Verdict:
        """Facts, clocks, links: what is wrong ends the meeting."""
        told = self.visitor.heard("facts", self.limits.arrival)
        facts = {node: Facts(**content) for node, content in told.items()}  # type: ignore[arg-type]
        if facts[0].refused:
            return Verdict(refused=facts[0].refused)
        absent = f"did not come within {self.limits.arrival:g} s of the first node"
        unwell = {node: absent for node in range(self.party.count) if node not in facts}
        skews = self.skews(list(facts)[1:])
        needed = self.wanted.gpus
        if needed is None:
            needed = self.party.ranks if facts[0].gpus else 0
        for node, found in facts.items():
            wrong = problems(found, self.wanted, needed, skews.get(node, 0.0))
            if wrong:
                unwell[node] = "; ".join(wrong)
        if not unwell:
            unwell = self.links(needed > 0)
        return Verdict(
            unwell={self.party.names[node]: unwell[node] for node in sorted(unwell)},
            gpus=min(found.gpus for found in facts.values()),
            skew=max(map(abs, skews.values()), default=0.0),
            seconds=time.monotonic() - began,
        )

    def skews(self, others: Sequence[int]) -> dict[int, float]:
        """Node -> seconds its clock is ahead at least, as asking takes time too; inf where no answer comes."""
        visitor, found = self.visitor, {}
        visitor.order({"clock": True})
        for node in others:
            asked, key = visitor.clock(), f"clock/{node}"
            visitor.store.set(f"turn/{node}", "")
            try:
                visitor.store.wait([key], timedelta(seconds=self.limits.answer))
            except DistError:
                found[node] = math.inf
                continue
            heard = visitor.clock()
            ahead = json.loads(visitor.store.get(key)) - (asked + heard) / 2
            found[node] = math.copysign(max(0.0, abs(ahead) - (heard - asked) / 2), ahead)
        return found

    def links(self, gpus: bool) -> dict[int, str]:
        """Nodes that do not add up with the others, and why."""
        count = self.party.count
        failed = self.tried("all", everybody(count), gpus)
        if not failed or count == 1:
            return {node: f"{LINKS} of its ranks: {reason}" for node, reason in failed.items()}
        by_itself = self.tried("own", alone(count), gpus)
        if by_itself:
            return {node: f"{LINKS} of its own ranks: {reason}" for node, reason in by_itself.items()}
        reasons = failed if count == 2 else self.neighbours(gpus)
        named = {node: f"{LINKS} with its neighbours: {reason}" for node, reason in reasons.items()}
        # Every two add up and all together do not: nobody's fault alone, and no reason to train.
        return named or {node: f"{LINKS} of all nodes, not of any two: {reason}" for node, reason in failed.items()}

    def neighbours(self, gpus: bool) -> dict[int, str]:
        """Nodes that reach neither neighbour."""
        apart: dict[frozenset[int], str] = {}
        for number, groups in enumerate(pairs(self.party.count)):
            failed = self.tried(f"pairs{number}", groups, gpus)
            apart |= {frozenset(pair): failed[node] for pair in groups for node in pair if node in failed}
        return cut_off(self.party.count, apart)

    def tried(self, name: str, groups: Groups, gpus: bool) -> dict[int, str]:
        """Node -> reason, for those of an all-reduce that failed."""
        groups = [list(group) for group in groups]
        self.visitor.order({"try": name, "groups": groups, "gpus": gpus})
        self.visitor.try_links(name, groups, gpus)
        told = self.visitor.heard(name, 2 * self.limits.answer)
        absent = {node: "no answer" for node in range(self.party.count) if node not in told}
        return absent | {node: str(reason) for node, reason in told.items() if reason}
