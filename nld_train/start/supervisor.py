"""The supervisor of torchrun: it passes requests to stop on to the run, and says in one line how the run failed."""

import logging
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from nld_train.exit_status import FAILED, FINISHED, LEFT_AT_ONCE
from nld_train.signals import PARENT, SIGNALS

logger = logging.getLogger(__name__)
# How torchrun's log names the first process that failed.
FIRST_FAILURE = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")


class TorchrunSupervisor:
    """Runs torchrun, and with it the ranks, as one child process."""

    def __init__(self, name: str, stop: Path) -> None:
        """name: what messages call the run; stop: the file that asks the run to stop."""
        self.name, self.stop = name, stop
        self.process: subprocess.Popen[bytes] | None = None
        self.interrupted = self.left = False

    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Run the command to its end, with its stderr appended to `log`; returns FINISHED, FAILED or LEFT_AT_ONCE."""
        # The child starts with the signals blocked, so that one that comes before it listens waits for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        start = log.stat().st_size if log.exists() else 0
        with log.open("a") as errors:
            self.process = subprocess.Popen(command, env={**environment, PARENT: str(os.getpid())}, stderr=errors)
        handlers = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            status = self.process.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.stop.unlink(missing_ok=True)
        if self.left:
            return LEFT_AT_ONCE
        if status:
            with log.open("rb") as errors:
                errors.seek(start)
                written = errors.read().decode(errors="replace")
            logger.error("%s failed%s; see %s", self.name, first_killed_rank(written), log)
        return FAILED if status else FINISHED

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        assert self.process is not None, "handlers are set after the start"
        if number == signal.SIGINT and self.interrupted:
            self.left = True
            self.process.kill()  # its ranks die with it: signals.die_with_parent
            return
        self.interrupted |= number == signal.SIGINT
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
