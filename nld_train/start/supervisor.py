"""The supervisor of torchrun: it passes requests to stop on to the run, and says in one line how the run failed.

A request reaches the ranks as the file OUTPUT/stop. Before there are ranks it ends the start. Where the first rank
gives no answer, because it hangs in a library, all ranks are killed.
"""

import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from nld_train.errors import UserError
from nld_train.exit_status import FAILED, FINISHED, LEFT_AT_ONCE, REFUSED
from nld_train.run_folder.output_lock import LockOwner
from nld_train.run_folder.stop_file import LEAVE, SEEN, stop_answer
from nld_train.signals import PARENT, SIGNALS

logger = logging.getLogger(__name__)
# How torchrun's log names the first process that failed.
FIRST_FAILURE = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
ANSWER_SECONDS = 25.0  # within which a rank that was asked to stop says that it has heard


class StoppedBeforeStart(Exception):
    """A request to stop that came before any rank was started."""


class TorchrunSupervisor:
    """Runs torchrun, and with it the ranks, as one child process."""

    def __init__(self, name: str, stop: Path, *, first: bool) -> None:
        """name: what messages call the run; stop: the file that asks the run to stop; first: whether the rank that
        answers in it is one of these."""
        self.name, self.stop, self.first = name, stop, first
        self.process: subprocess.Popen[bytes] | None = None
        self.interrupted = self.gave_way = False
        self.left: int | None = None  # the exit status, where the run is not waited for
        self.asked_at: float | None = None

    def __enter__(self) -> Self:
        """Listen to the requests to stop; until `run` starts the command they raise StoppedBeforeStart."""
        self.handlers = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def give_way(self, owner: LockOwner | None) -> None:
        """Leave at once: the output folder has gone to another start."""
        self.gave_way = True
        self._leave(f"{self.stop.parent} was taken over by {owner or 'another start'}: this one leaves", REFUSED)

    def refuse(self, error: UserError) -> None:
        """Leave at once: what the run trains on turns out to be damaged."""
        self._leave(f"nld: {error}", REFUSED)

    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Run the command to its end, with its stderr appended to `log`; returns its exit status."""
        # The child starts with the signals blocked, so that one that comes before it listens waits for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        start = log.stat().st_size if log.exists() else 0
        with log.open("a") as errors:
            self.process = subprocess.Popen(command, env={**environment, PARENT: str(os.getpid())}, stderr=errors)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self.left is not None:
            self.process.kill()
        try:
            status = self._wait()
        finally:
            if not self.gave_way:
                self.stop.unlink(missing_ok=True)
        if self.left is not None:
            return self.left
        if status:
            with log.open("rb") as errors:
                errors.seek(start)
                written = errors.read().decode(errors="replace")
            reason = f"{self.name} failed{first_killed_rank(written)}"
            with log.open("a") as errors:
                errors.write(f"{reason}\n")
            logger.error("%s; see %s", reason, log)
        return FAILED if status else FINISHED

    def _wait(self) -> int:
        """Wait for the end of the command, and end it where nobody answers a request to stop."""
        assert self.process is not None, "it was started"
        while True:
            try:
                return self.process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                asked = self.asked_at is not None and time.monotonic() - self.asked_at > ANSWER_SECONDS
                if self.first and asked and stop_answer(self.stop) not in (SEEN, LEAVE):
                    self._leave(
                        f"{self.name}: no answer from its ranks for {ANSWER_SECONDS:.0f} s: they are killed",
                        LEFT_AT_ONCE,
                    )

    def _leave(self, reason: str, status: int) -> None:
        """Kill the command; its ranks die with it: signals.die_with_parent."""
        logger.error(reason)
        self.left = status
        if self.process is not None:
            self.process.kill()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.process is None:
            raise StoppedBeforeStart(signal.Signals(number).name)
        if self.process.poll() is not None:  # it has ended by itself
            return
        if number == signal.SIGINT and self.interrupted:
            self._leave(f"SIGINT: leaving {self.name} at once", LEFT_AT_ONCE)
            return
        self.interrupted |= number == signal.SIGINT
        self.asked_at = self.asked_at or time.monotonic()
        try:
            self.stop.touch()
        except OSError as error:
            logger.error("cannot ask %s to stop: %s: %s", self.name, self.stop, error.strerror)
            return
        at_once = "; Ctrl-C again leaves at once, without saving" if number == signal.SIGINT else ""
        logger.warning(
            "%s: stopping %s after this step, with a checkpoint%s", signal.Signals(number).name, self.name, at_once
        )


def first_killed_rank(log: str) -> str:
    """What a message adds, e.g. ": rank 1 was killed by SIGKILL"; "" where torchrun's log names no signal."""
    found = FIRST_FAILURE.search(log)
    if found is None or int(found[1]) >= 0:
        return ""
    return f": rank {found[2]} was killed by {signal.Signals(-int(found[1])).name}"
