"""Time and memory of alternatives, which take turns: a machine that is busy for a while slows them all alike."""

import gc
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nld_train.errors import UserError

logger = logging.getLogger(__name__)

Step = Callable[[], object]  # one repetition: when it returns, the work is done or queued on the device

# The errors by which an alternative (ours or a library's) may say that it cannot run here. Any other error is a mistake
# of the measurement itself and ends it.
FAILURES = (UserError, ImportError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError)
REASON_CHARACTERS = 160


@dataclass(frozen=True)
class Alternative:
    """One way to do the work."""

    name: str
    prepare: Callable[[], Step]  # builds what a step needs; raises one of FAILURES where it cannot run here
    useful: float  # FLOPs of one repetition that every implementation has to do


@dataclass
class Measurement:
    """What was measured of an alternative."""

    name: str
    useful: float
    seconds: list[float] = field(default_factory=list)  # of one repetition, one figure a round
    peak: int | None = None  # bytes above those that were allocated before it was prepared
    refusal: str | None = None  # why it did not run

    @property
    def rate(self) -> float:
        """Useful FLOP/s in the median round."""
        return self.useful / median(self.seconds)


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int  # at most
    repetitions: int  # of one alternative in a round, timed together
    budget: float  # seconds for all alternatives; the table says what did not fit
    resident: bool = True  # True: all stay in memory while the others run; False: each is built anew in every round


class TimeBudget:
    """Counts down the seconds of a budget from the moment it is made."""

    def __init__(self, budget: float) -> None:
        self.end = time.monotonic() + budget

    @property
    def left(self) -> float:
        """Seconds that are left; negative once the budget is spent."""
        return self.end - time.monotonic()


def measure_in_turns(alternatives: Sequence[Alternative], effort: Effort, device: torch.device) -> list[Measurement]:
    """Measure each alternative `rounds` times, in turns.

    One that cannot run says why, and the others go on. When the budget is spent, or at Ctrl-C, the rest is left out.
    """
    budget = TimeBudget(effort.budget)
    results = [Measurement(one.name, one.useful) for one in alternatives]
    ready: dict[str, Step] = {}
    try:
        for number in range(effort.rounds):
            for one, result in zip(alternatives, results, strict=True):
                if result.refusal is None and budget.left > 0:
                    _one_round(one, result, ready, effort, device)
            if budget.left <= 0:
                logger.info("%.0f s are spent: stopped in round %d of %d", effort.budget, number + 1, effort.rounds)
                break
    except KeyboardInterrupt:
        logger.info("stopped on request; what was measured until then follows")
    for result in results:
        if not result.seconds and result.refusal is None:
            result.refusal = f"cut: the {effort.budget:.0f} s were spent, or it was stopped"
    return results


def _one_round(
    one: Alternative, result: Measurement, ready: dict[str, Step], effort: Effort, device: torch.device
) -> None:
    """Time one alternative once more. `ready` holds the steps that stay in memory, by name."""
    try:
        if one.name not in ready:
            ready[one.name] = _prepared(one, result, device)
        result.seconds.append(_seconds_per_repetition(ready[one.name], effort.repetitions, device))
    except FAILURES as error:
        result.refusal = failure_line(error)
    if result.refusal is not None or not effort.resident:
        ready.pop(one.name, None)
    free_device_memory(device)


def failure_line(error: BaseException) -> str:
    """An error as one line of at most REASON_CHARACTERS."""
    said = " ".join(str(error).split()) or "no reason given"
    text = said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"
    return text if len(text) <= REASON_CHARACTERS else f"{text[: REASON_CHARACTERS - 3]}..."


def _prepared(one: Alternative, result: Measurement, device: torch.device) -> Step:
    """The alternative's step, built and warm. The first time its peak memory is noted in `result`."""
    before = _allocated_bytes(device)
    step = one.prepare()
    step()  # compiles, tunes, allocates what stays
    free_device_memory(device)
    if result.peak is None:
        held = _allocated_bytes(device) - before
        result.peak = held + peak_bytes(step, device)
    step()
    return step


def _seconds_per_repetition(step: Step, repetitions: int, device: torch.device) -> float:
    """Seconds of one repetition. Several are queued at once, so that a GPU need not wait for the host."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repetitions):
            step()
        return (time.perf_counter() - start) / repetitions
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    for _ in range(repetitions):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repetitions


def _allocated_bytes(device: torch.device) -> int:
    """Bytes of tensors on a GPU; a CPU keeps no such count: 0."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def free_device_memory(device: torch.device) -> None:
    """Give the memory of tensors that are no longer used back to the GPU, so that the next alternative finds it."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def peak_bytes(step: Step, device: torch.device) -> int:
    """The most bytes of tensors that one repetition holds at once, above those that were there before it."""
    if device.type != "cuda":
        with TensorByteCounter() as seen:
            step()
        return seen.peak
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class TensorByteCounter(TorchDispatchMode):
    """Counts the bytes of the tensors made under it that are still alive, as a GPU's allocator would."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict[str, object] | None = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        given = {id(tensor.untyped_storage()) for tensor in args if isinstance(tensor, Tensor)}
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), given)
        return made

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        """Count a storage until it is freed, unless it was `given` to the operator: then the result is a view of it."""
        key = id(storage)
        if key in self.known or key in given:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            self.alive -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, gone)
        self.alive += size
        self.peak = max(self.peak, self.alive)
