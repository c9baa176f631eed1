"""torchrun, made to outlive the signals that ask a run to stop: by default it would kill its ranks on them."""

import os
import signal
import sys

from torch.distributed.run import main as torchrun

from nld_train.signals import SIGNALS, die_with_parent


def torchrun_main() -> None:
    """torchrun's own command line."""
    die_with_parent()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"  # the default of torchrun's --signals-to-handle
    torchrun(sys.argv[1:])


if __name__ == "__main__":
    torchrun_main()
