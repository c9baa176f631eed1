"""One rank of a test: trains several runs one after another, because importing Megatron takes longer than they do.

Every run leaves some 60 threads of gloo behind in its process, which wake up now and then: those of 20 runs on 4 ranks
took all of a 2-core machine. So ten runs at a time are trained by a fork, and their threads end with it.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from nld_train.recipe import from_json
from nld_train.train import host, patches
from nld_train.train.folder import open_output
from nld_train.train.run import train
from nld_train.train.signals import end_children

MOST_RUNS = 10


def main() -> None:
    load_megatron()
    runs = [Path(name) for name in sys.argv[1:]]
    for first in range(0, len(runs), MOST_RUNS):
        if fork_and_train(first, runs[first : first + MOST_RUNS]) != 0:
            sys.exit(1)


def load_megatron() -> None:
    """Everything that a run imports, and none of it started: threads would not survive the fork."""
    host.install()
    patches.install()
    import megatron.bridge.training.pretrain  # noqa: F401

    import nld_train.train.bridge_config
    import nld_train.train.draft_step
    import nld_train.train.progress  # noqa: F401


def fork_and_train(number: int, runs: Sequence[Path]) -> int:
    """The exit status of the process that trained the runs. number: no two groups of runs have the same."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train_all(number, runs)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            end_children()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitpid(child, 0)[1]


def train_all(number: int, runs: Sequence[Path]) -> None:
    """The runs, in one process group that they share with no others."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    met = torch.distributed.PrefixStore(f"runs {number}", store)
    torch.distributed.init_process_group("gloo", store=met, rank=rank, world_size=ranks)
    from megatron.bridge.training.initialize import destroy_global_state

    for frozen in runs:
        run = from_json(frozen.read_text())
        if rank == 0:
            open_output(run)
        torch.distributed.barrier()
        with open(os.devnull, "w") as nowhere:
            train(run, nowhere)
        destroy_global_state()
    torch.distributed.barrier()  # nobody leaves before all are done


if __name__ == "__main__":  # checkpoint saving spawns processes that import this file
    main()
