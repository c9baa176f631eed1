"""Recursive dynamic compaction: the fewest steps to the target that a search within a budget of forwards finds.

Level 0 is greedy acceptance. A walk of level d ranks the matches of its state by confidence and commits the largest
prefix of them that is *safe*: going on from it by a walk of level d - 1 ends in the target. The prefix is found by
bisection; the whole is tried first, so that one safe greedy step is never cut short. A prefix of one place counts as
safe without a check. A state without matches cannot end in the target, and the walk gives up.

Why the walk of the top level ends in the target on every block. Invariant: at its every state it holds a *known rest*,
a path from there to the target whose every step commits a prefix of the ranked matches, and whose states were asked for
already (the target itself never is).

1. At the start the known rest is serial denoising's path, which made the target. Each of its steps commits the most
   confident place of all, with the token that then stands in the target: a match, and the first in rank.
2. At a state with a known rest, whose first step commits the n first matches, prefixes of more than n are searched.
   Where one is found safe, the shallower walk's path from it is the new known rest: it ends in the target, it was asked
   for while it was checked, and it commits prefixes: greedy acceptance commits all matches, and a deeper walk commits
   prefixes by this very rule.
3. Else the walk takes the first step of its known rest, and what is left of the rest is known at the state it comes to.

Each step fills a mask, so the walk ends, and it ends in the target. It asks for nothing outside its checks that was not
asked for before, so a spent budget can only stop checks: one that asks for a new state then is off, and its prefix
counts as unsafe. (For d = 1, once a prefix of two or more places was found safe, all that follows is greedy acceptance:
it checked the prefix, and itself commits all matches.)

The result is safe, not always the shortest: safety is not monotone in the length of the prefix, which bisection takes
for granted, and a shorter prefix can open a shorter path.

The budget counts the distinct states that the search asks for; the B states of serial denoising, which made the target,
are free, and a state is counted once however often it is met.
"""

from nld_train.evaluation.oracle_walks import (
    Path,
    Prediction,
    State,
    Walk,
    commit_places,
    greedy_walk,
    masked_block,
    ranked_matches,
)


class CompactionSearch:
    """The search on one block. `spent`: the states it has asked for; `stopped`: whether the budget ended a check."""

    def __init__(self, serial: Path, budget: int) -> None:
        """serial: the path of serial denoising, whose end is the target."""
        self.serial, self.target, self.budget = serial, serial[-1], budget
        self.start = masked_block(len(self.target))
        self.free = {self.start, *serial}
        self.asked: set[State] = set()
        self.stopped = False
        self.outcomes: dict[tuple[int, State], Path | None] = {}  # what walks from a state have found, by their level

    @property
    def spent(self) -> int:
        return len(self.asked)

    def walk_block(self, depth: int) -> Walk[Path]:
        """The path of the walk of level `depth`, 1 or more, from masks alone to the target."""
        path = yield from self._walk(self.start, depth, list(self.serial))
        assert path is not None and path[-1] == self.target, "compaction left the target"
        return path

    def _walk(self, start: State, level: int, known: Path | None) -> Walk[Path | None]:
        """The path to the target of a walk of this level; None where it gives up. known: the known rest, None: none."""
        state, path, rest = start, [], known
        while state != self.target:
            prediction = yield state
            matches = ranked_matches(state, prediction, self.target)
            if not matches:
                return None
            # What the walk commits unless it finds more: the known step, or the most confident match.
            floor = 1 if rest is None else count_filled(rest[0]) - count_filled(state)
            found = yield from self._search(state, prediction, matches, floor, level)
            rest = rest if found is None else found
            state = commit_places(state, prediction, matches[:1]) if rest is None else rest[0]
            rest = None if rest is None else rest[1:]
            path.append(state)
        return path

    def _search(
        self, state: State, prediction: Prediction, matches: list[int], floor: int, level: int
    ) -> Walk[Path | None]:
        """The path that begins with the longest safe prefix found of the matches, longer than `floor`; None: none."""
        best, low, high = None, floor, len(matches)
        probe = high
        while low < high:
            after = commit_places(state, prediction, matches[:probe])
            rest = yield from self._check(after, level - 1)
            if rest is None:
                high = probe - 1
            else:
                low, best = probe, [after, *rest]
            probe = (low + high + 1) // 2
        return best

    def _check(self, state: State, level: int) -> Walk[Path | None]:
        """The path of a walk of this level from a state to the target, within the budget; None where it is unsafe."""
        key = (level, state)
        if key not in self.outcomes:
            walk = greedy_walk(state, self.target, give_up=True) if level == 0 else self._walk(state, level, None)
            path = yield from self._within_budget(walk)
            ends = path is not None and [state, *path][-1] == self.target
            self.outcomes[key] = path if ends else None
        return self.outcomes[key]

    def _within_budget(self, walk: Walk[Path] | Walk[Path | None]) -> Walk[Path | None]:
        """What a walk returns; None where it asks for a new state when the budget is spent."""
        try:
            state = next(walk)
            while self._take(state):
                prediction = yield state
                state = walk.send(prediction)
        except StopIteration as end:
            result: Path | None = end.value
            return result
        walk.close()
        return None

    def _take(self, state: State) -> bool:
        """Whether a state may be asked for; if so it is counted."""
        if state in self.free or state in self.asked:
            return True
        if self.spent == self.budget:
            self.stopped = True
            return False
        self.asked.add(state)
        return True


def count_filled(state: State) -> int:
    """How many places of a state are committed."""
    return sum(token >= 0 for token in state)
