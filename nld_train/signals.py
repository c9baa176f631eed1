"""Signals that ask a run to stop, and what every process of a job does with them.

Whoever asks may signal `nld train` alone, as people do, or every process of the job, as Slurm does. Ranks note the
request and act on it after their step; torchrun, loader workers and checkpoint writers have to outlive it.
"""

import ctypes
import multiprocessing
import os
import signal
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PARENT = "NLD_TRAIN_PARENT"  # variable: the process id of the one that set it, for those it starts
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.received = False

    def listen(self) -> None:
        """Note the signals from now on, and those that came while they were blocked. Processes started after this
        inherit the block, and are not killed by a signal to the whole job."""
        for number in SIGNALS:
            signal.signal(number, self._receive)
        # Some Python 3.12 unblock signals when the tracker starts, so it starts first.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def asked(self) -> bool:
        return self.received or not signal.sigpending().isdisjoint(SIGNALS)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends: a killed `nld train` leaves no rank behind that trains on
    into the same folder. Processes on the way down from the launcher call it; the parent may have ended already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if PARENT in os.environ and int(os.environ[PARENT]) != os.getppid():
        os._exit(1)
    os.environ[PARENT] = str(os.getpid())


def end_children() -> None:
    """Kill what is left of this process's loader workers and writers. Python would ask them at exit with the signal
    that they block, and wait."""
    for child in multiprocessing.active_children():
        child.kill()
