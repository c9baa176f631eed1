import functools
import signal
from contextlib import closing

import pytest

from data_prep.pool import run_ordered
from nld_train.errors import UserError


def test_results_come_in_order_for_any_number_of_workers() -> None:
    numbers = list(range(-20, 20))
    for workers in (1, 3):
        assert list(run_ordered(abs, numbers, workers)) == [abs(number) for number in numbers]


def test_tasks_are_taken_as_they_are_needed() -> None:
    taken = []
    tasks = (taken.append(number) or number for number in range(1000))
    with closing(run_ordered(abs, tasks, 2)) as results:
        next(results)
    assert len(taken) < 100


def test_an_error_of_a_task_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(run_ordered(int, ["1", "x"], 2))


def refuse(number: int) -> None:
    raise UserError(f"number {number}", "others", "choose another")


def test_a_user_error_of_a_worker_reaches_the_user_whole() -> None:
    with pytest.raises(UserError, match="^number 1; allowed: others; do: choose another$"):
        list(run_ordered(refuse, [1, 2], 2))


def test_a_killed_worker_is_a_user_error_and_not_a_hang() -> None:
    with pytest.raises(UserError, match="killed"):
        list(run_ordered(signal.raise_signal, [signal.SIGKILL] * 3, 2))


def test_workers_never_see_an_interrupt_and_the_parent_still_does() -> None:
    blocked = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK)  # with no signals: tells which are blocked
    for held in run_ordered(blocked, [set(), set()], 2):
        assert signal.SIGINT in held
        assert signal.SIGINT not in blocked(set())
