"""torchrun that outlives the signals that ask a run to stop; by default it would kill its ranks on them."""

import os
import signal
import sys

from torch.distributed.run import main as torchrun

from nld_train.signals import OWN_TORCHRUN, SIGNALS, TORCHRUN_SIGNALS, die_with_parent


def torchrun_main() -> None:
    """Run torchrun on this process's own arguments."""
    die_with_parent()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.environ.update({**TORCHRUN_SIGNALS, OWN_TORCHRUN: str(os.getpid())})
    torchrun(sys.argv[1:])


if __name__ == "__main__":
    torchrun_main()
