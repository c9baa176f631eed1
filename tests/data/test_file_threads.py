import threading

import pytest

from nld_train.data import file_threads
from nld_train.data.file_threads import call_in_threads, count_threads


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert call_in_threads([lambda number=number: number * 2 for number in range(50)]) == list(range(0, 100, 2))
    assert call_in_threads([lambda: threading.current_thread().name]) == ["MainThread"]
    assert call_in_threads([]) == [] and count_threads(1) == 1


def test_behind_a_failure_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_threads, "count_threads", lambda jobs: 1)
    begun, failed = [], threading.Event()

    def fail() -> None:
        begun.append("first")
        failed.set()
        raise ValueError("it fails")

    def follow() -> None:
        begun.append("later")
        threading.Event().wait(0.2)

    with pytest.raises(ValueError, match="it fails"):
        call_in_threads([fail, *[follow] * 50])
    assert failed.is_set() and len(begun) < 10
