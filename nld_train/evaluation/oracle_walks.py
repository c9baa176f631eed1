"""Ways to fill one block of B masks, as coroutines: they ask for the model's prediction of a state, and are sent it.

So many blocks walk at once, and one forward answers them all (`oracle_forwards.py`). The rules that all walks share:

- A state is the block's tokens, MASKED where a mask still stands. A committed token stays.
- At a masked place the model predicts its most probable token (of equals the lowest id), with that one's probability,
  the *confidence*. Places are ranked by confidence; of equals the lowest place comes first.
- A walk's path is the states that its steps make, the start left out. One step is one forward.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

MASKED = -1
State = tuple[int, ...]  # [B] token ids, or MASKED
Path = list[State]


@dataclass(frozen=True)
class Prediction:
    """What the model says of a state: the most probable token of every place [B], and its probability [B]."""

    tokens: Sequence[int]
    confidence: Sequence[float]


Result = TypeVar("Result")
Walk = Generator[State, Prediction, Result]


def masked_block(length: int) -> State:
    """The state in which every walk of a block starts: masks alone."""
    return (MASKED,) * length


def ranked_places(state: State, prediction: Prediction) -> list[int]:
    """The masked places, the most confident one first, of equals the lowest."""
    masked = [place for place, token in enumerate(state) if token == MASKED]
    return sorted(masked, key=lambda place: -prediction.confidence[place])  # the sort keeps the order of equals


def ranked_matches(state: State, prediction: Prediction, target: State) -> list[int]:
    """The masked places whose prediction is the target's token, in their rank."""
    return [place for place in ranked_places(state, prediction) if prediction.tokens[place] == target[place]]


def commit_places(state: State, prediction: Prediction, places: Iterable[int]) -> State:
    """The state with the predictions of these places committed."""
    filled = list(state)
    for place in places:
        filled[place] = prediction.tokens[place]
    return tuple(filled)


def serial_walk(length: int) -> Walk[Path]:
    """Serial denoising: every step commits the most confident place alone. The end of its path is the *target* t."""
    return threshold_walk(length, float("inf"))


def threshold_walk(length: int, threshold: float) -> Walk[Path]:
    """The sampler of block diffusion: every step commits the places with `threshold` or more, and the most confident
    one in any case."""
    state, path = masked_block(length), []
    while MASKED in state:
        prediction = yield state
        best, *others = ranked_places(state, prediction)
        confident = [place for place in others if prediction.confidence[place] >= threshold]
        state = commit_places(state, prediction, [best, *confident])
        path.append(state)
    return path


def greedy_walk(start: State, target: State, give_up: bool = False) -> Walk[Path]:
    """Greedy acceptance: every step commits all places whose prediction is the target's token; where there is none, the
    most confident one, and then the walk cannot end in the target any more.

    give_up: end before the first such step, because only walks that end in the target are of interest.
    """
    state, path = start, []
    while MASKED in state:
        prediction = yield state
        matches = ranked_matches(state, prediction, target)
        if give_up and not matches:
            break
        state = commit_places(state, prediction, matches or ranked_places(state, prediction)[:1])
        path.append(state)
    return path
