"""Turns, budgets, refusals and the count of bytes."""

import time

import pytest
import torch

from nld_train.bench.measure import (
    Alternative,
    Effort,
    Step,
    TensorByteCounter,
    failure_line,
    measure_in_turns,
    peak_bytes,
)
from nld_train.errors import UserError

CPU = torch.device("cpu")
KIBI = 1 << 10


def noted(name: str, order: list[str]) -> Alternative:
    return Alternative(name, lambda: lambda: order.append(name), useful=2.0)


def failing(name: str, error: BaseException, after: int) -> Alternative:
    """Fails in its repetition number `after`; at 0 while it is prepared."""
    done = []

    def step() -> None:
        done.append(1)
        if len(done) == after:
            raise error

    def prepare() -> Step:
        if after == 0:
            raise error
        return step

    return Alternative(name, prepare, useful=1.0)


def test_alternatives_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    results = measure_in_turns([noted("a", order), noted("b", order)], Effort(3, 2, budget=60), CPU)
    warm_up = 3  # one to compile, one whose memory is counted, one to be warm again
    assert order == [*["a"] * (warm_up + 2), *["b"] * (warm_up + 2), *["a", "a", "b", "b"] * 2]
    assert [len(result.seconds) for result in results] == [3, 3]
    assert results[0].rate == 2.0 / sorted(results[0].seconds)[1]


def test_alternatives_that_are_not_kept_are_built_anew_in_every_round() -> None:
    built: list[int] = []

    def prepare() -> Step:
        built.append(1)
        return lambda: None

    (result,) = measure_in_turns([Alternative("a", prepare, 1.0)], Effort(3, 1, budget=60, resident=False), CPU)
    assert (len(built), len(result.seconds)) == (3, 3)


@pytest.mark.parametrize("after", [0, 1, 4, 6])
def test_one_that_cannot_run_says_why_and_does_not_stop_the_others(after: int) -> None:
    order: list[str] = []
    todo = [failing("broken", RuntimeError("no kernel\n  for this"), after), noted("whole", order)]
    broken, whole = measure_in_turns(todo, Effort(4, 1, budget=60), CPU)
    assert broken.refusal == "RuntimeError: no kernel for this"
    assert whole.refusal is None and len(whole.seconds) == 4


def test_what_does_not_fit_into_the_time_is_cut_and_said() -> None:
    slow = Alternative("slow", lambda: lambda: time.sleep(0.05), 1.0)
    first, second = measure_in_turns([slow, slow], Effort(100, 1, budget=0.1), CPU)
    assert 1 <= len(first.seconds) < 100
    assert second.refusal is not None and second.refusal.startswith("cut: ")


def test_ctrl_c_keeps_what_was_measured() -> None:
    order: list[str] = []
    todo = [noted("whole", order), failing("stopped", KeyboardInterrupt(), after=4), noted("later", order)]
    whole, stopped, later = measure_in_turns(todo, Effort(3, 1, budget=60), CPU)
    assert len(whole.seconds) == 1
    assert not stopped.seconds and not later.seconds
    assert later.refusal is not None


def test_a_mistake_of_the_measurement_itself_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        measure_in_turns([failing("broken", ZeroDivisionError(), 1)], Effort(1, 1, budget=60), CPU)


def test_reasons_are_one_line() -> None:
    assert failure_line(UserError("a", "b", "c")) == "a; allowed: b; do: c"
    assert failure_line(ValueError()) == "ValueError: no reason given"
    assert len(failure_line(RuntimeError("long " * 100))) == 160


def test_peak_counts_what_is_alive_at_once() -> None:
    def step() -> None:
        first = torch.zeros(KIBI)
        second = first.view(2, -1) + 1  # 8 KiB with the first; the view is none
        del first
        third = second * 2  # 8 KiB again
        del second
        third.add_(1)

    assert peak_bytes(step, CPU) == 8 * KIBI


def test_peak_leaves_out_what_was_there_before_and_counts_gradients() -> None:
    weight = torch.zeros(KIBI, requires_grad=True)
    weight.grad = torch.zeros(KIBI)
    assert peak_bytes(lambda: weight.view(4, -1), CPU) == 0
    assert peak_bytes(lambda: weight.exp().sum().backward(), CPU) >= 8 * KIBI  # the result, kept, and a gradient


def test_bytes_are_forgotten_with_their_tensors() -> None:
    with TensorByteCounter() as seen:
        kept = torch.zeros(KIBI)
        for _ in range(5):
            torch.zeros(KIBI)
    assert (seen.alive, seen.peak) == (4 * KIBI, 8 * KIBI)
    assert kept.numel() == KIBI
