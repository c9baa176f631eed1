"""A rank that was asked to stop, and cannot get to the end of a step, leaves all the same.

The loop looks for requests after each step. A thread looks for them where that is no help: before the end of the first
step, when there is nothing to save, and in a step that does not end, such as one that waits for a lost rank. The thread
also ends a rank that waits for its rows without end.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from nld_train.config import RunConfig
from nld_train.exit_status import FAILED, FINISHED
from nld_train.run_folder.stop_file import LEAVE, SEEN, answer_stop, stop_answer, stop_file
from nld_train.signals import OWN_TORCHRUN, StopRequest, end_children
from nld_train.train.terminal import shared_memory_text

logger = logging.getLogger(__name__)
PERIOD = 1.0  # seconds between two looks
OVERDUE = 15.0  # seconds after which a step may be taken for one that does not end,
OVERDUE_STEPS = 3.0  # and so many times the longest step before


class LeaveWatch:
    """Watches the steps of one rank; `start` begins."""

    def __init__(self, run: RunConfig, rank: int, request: StopRequest, screen: TextIO) -> None:
        self.rank, self.request, self.screen = rank, request, screen
        self.workers = run.data.workers
        self.name, self.path = run.name, stop_file(run.output)
        self.taken = 0  # steps that this start has ended
        self.began: float | None = None  # when the step under way began; None between two steps
        self.longest = 0.0  # seconds of the longest step
        self.asked_at: float | None = None
        self.waits_since: float | None = None  # for the next rows; None: it has them
        # Before the other ranks, which wait for this one, give up without a reason.
        self.patience = run.parallel.timeout_minutes * 60 / 2

    def start(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def begin_step(self) -> None:
        self.began = time.monotonic()

    def end_step(self) -> None:
        assert self.began is not None, "a step that ends has begun"
        self.longest = max(self.longest, time.monotonic() - self.began)
        self.began, self.taken = None, self.taken + 1

    @contextlib.contextmanager
    def waits_for_rows(self) -> Iterator[None]:
        """The block waits for the loader."""
        self.waits_since = time.monotonic()
        try:
            yield
        finally:
            self.waits_since = None

    def leaving(self) -> bool:
        """Whether all ranks leave without a checkpoint: what fails now fails because another one has left already."""
        return stop_answer(self.path) == LEAVE

    def _watch(self) -> None:
        while True:
            time.sleep(PERIOD)
            if self.waits_since is not None and time.monotonic() - self.waits_since > self.patience:
                workers = "the loader's workers read no rows" if self.workers else "no row could be read"
                self._fail(f"{workers} for {self.patience:.0f} s: {shared_memory_text()}; are the token files there?")
            answer = stop_answer(self.path)
            if answer == LEAVE:
                self._leave_early()
            if answer is None and not self.request.asked():
                continue
            self.asked_at = self.asked_at or time.monotonic()
            if self.rank == 0 and self.taken == 0:
                answer_stop(self.path, LEAVE)
                self._leave_early()
            if self.rank == 0 and answer != SEEN:
                answer_stop(self.path, SEEN)
            if self._is_overdue():
                self._leave_hanging_step()

    def _leave_early(self) -> None:
        """Before the end of the first step. The others see the file within two periods; until then this rank stays,
        because they would take its end for a failure."""
        logger.warning("%s: asked to stop before its first step was done: nothing is saved", self.name)
        time.sleep(2 * PERIOD)
        self._end(FINISHED)

    def _is_overdue(self) -> bool:
        assert self.asked_at is not None, "somebody has asked"
        if self.began is None:
            return False
        allowed = max(OVERDUE, OVERDUE_STEPS * self.longest)
        return time.monotonic() - max(self.began, self.asked_at) > allowed

    def _leave_hanging_step(self) -> None:
        assert self.began is not None, "a step is under way"
        since = time.monotonic() - self.began
        self._fail(
            f"asked to stop in a step that has not ended for {since:.0f} s (the longest before: {self.longest:.1f} s): "
            "leaving without saving it"
        )

    def _fail(self, reason: str) -> None:
        said = f"rank {self.rank}: {reason}"
        logger.error(said)
        self.screen.write(f"{said}\n")
        self.screen.flush()
        if os.environ.get(OWN_TORCHRUN) == str(os.getppid()):
            # torchrun would wait half a minute for the rank that is lost; without it all ranks end at once.
            os.kill(os.getppid(), signal.SIGKILL)
        self._end(FAILED)

    def _end(self, status: int) -> None:
        end_children()
        os._exit(status)
