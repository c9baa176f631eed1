"""The signals that ask a run to stop, and what every process of a job does with them.

A person signals `nld train` alone; Slurm signals every process of the job. Ranks note the request and act on it after
their step; torchrun, loader workers and checkpoint writers have to outlive the signals.
"""

import ctypes
import multiprocessing
import os
import signal
from multiprocessing import resource_tracker
from types import FrameType

from nld_train.exit_status import FAILED

TIME_IS_UP = signal.SIGUSR1  # Slurm sends it some time before a job's time limit
SIGNALS = (signal.SIGTERM, TIME_IS_UP, signal.SIGINT)
# torchrun kills its ranks on these. SIGNALS are not among them, and neither is SIGHUP: a run outlives its terminal.
TORCHRUN_SIGNALS = {"PET_SIGNALS_TO_HANDLE": "SIGQUIT"}
OWN_TORCHRUN = "NLD_TRAIN_TORCHRUN"  # variable: the id of the torchrun that `nld train` has started, for its ranks
PARENT = "NLD_TRAIN_PARENT"  # variable: the id of the process that set it, for the processes that it starts
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class StopRequest:
    """Knows whether this process was asked to stop."""

    def __init__(self) -> None:
        self.received = False

    def listen(self) -> None:
        """Note the signals that come from now on, and those that came while they were blocked.

        Processes that are started afterwards inherit the block, so that a signal to the whole job does not kill them.
        """
        for number in SIGNALS:
            signal.signal(number, self._receive)
        # Some versions of Python 3.12 unblock signals when the tracker starts, so it starts first.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def asked(self) -> bool:
        """Whether a signal has come, also one that is still blocked."""
        return self.received or not signal.sigpending().isdisjoint(SIGNALS)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends.

    So a killed `nld train` leaves no rank behind that goes on writing into the same folder. Every process between
    `nld train` and a rank calls this. Where the parent has ended already, this process ends at once.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if PARENT in os.environ and int(os.environ[PARENT]) != os.getppid():
        os._exit(FAILED)
    os.environ[PARENT] = str(os.getpid())


def end_children() -> None:
    """Kill the loader workers and writers that this process has left.

    Python would send them at exit the signal that they block, and wait for ever.
    """
    for child in multiprocessing.active_children():
        child.kill()
