"""What is made of each file of a run, several files at a time: numpy and files leave Python's lock."""

import concurrent.futures
import os
from collections.abc import Callable, Sequence

MOST_THREADS = 8  # each holds about 60 bytes of memory a document of its file


def count_threads(jobs: int) -> int:
    """How many of so many jobs run at a time."""
    return min(jobs, MOST_THREADS, len(os.sched_getaffinity(0)))


def call_in_threads[T](jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What each job returns, in order. Where one raises, or the process is stopped, those not begun are left out."""
    if len(jobs) < 2:
        return [job() for job in jobs]
    with concurrent.futures.ThreadPoolExecutor(count_threads(len(jobs))) as pool:
        begun = [pool.submit(job) for job in jobs]
        try:
            return [job.result() for job in begun]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
