"""Many processes, results in order, and no process left behind."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from nld_train.errors import UserError

WAITING_PER_WORKER = 32  # tasks handed out: so many others go on while one large file takes its time


def run_ordered[Task, Result](
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result]:
    """`map(function, tasks)` on `workers` processes (1: this one), with a bounded number of tasks under way.

    Close it (contextlib.closing) to wait for the tasks under way and end the processes. Raises UserError where a
    process was killed.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of the tokenizers library half-way
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=obey_parent)
    try:
        waiting: deque[Future[Result]] = deque()
        for task in tasks:
            with interrupt_held():  # submit starts the processes
                waiting.append(pool.submit(function, task))
            if len(waiting) >= workers * WAITING_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for want of memory", "workers that live", "use fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def interrupt_held() -> Iterator[None]:
    """Hold Ctrl-C back while the block runs. A process started in it never sees one: that is left to the parent."""
    held: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    # The mask is that of this thread: Ctrl-C may come through a thread of a library, and is then only noted.
    handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number)) if is_main else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_main:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def obey_parent() -> None:
    """In a worker: use one thread, and end when the parent is gone."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # of the fast engines
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism: no thread pool in each
    threading.Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
