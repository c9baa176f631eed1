"""One rank of a test: trains several runs one after another, each in a fork of a process that has imported Megatron.

Importing takes longer than the runs do; and a run leaves some 60 threads of gloo behind, which end with its process.
"""

import os
import sys
import traceback
from pathlib import Path

import torch

from nld_train.recipe import from_json
from nld_train.train import host, patches
from nld_train.train.folder import open_output
from nld_train.train.run import train


def main() -> None:
    load_megatron()
    for number, frozen in enumerate(sys.argv[1:]):
        if fork_and_train(number, Path(frozen)) != 0:
            sys.exit(f"{frozen} failed")


def load_megatron() -> None:
    """Everything that a run imports, and none of it started: threads would not survive the fork."""
    host.install()
    patches.install()
    import megatron.bridge.training.pretrain
    import nld_train.train.bridge_config
    import nld_train.train.draft_step
    import nld_train.train.progress  # noqa: F401


def fork_and_train(number: int, frozen: Path) -> int:
    """The exit status of the process that trained the run."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train_alone(number, frozen)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitpid(child, 0)[1]


def train_alone(number: int, frozen: Path) -> None:
    """The run, in a process group of its own. number: tells its meeting from those of the other runs."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    met = torch.distributed.PrefixStore(f"run {number}", store)
    torch.distributed.init_process_group("gloo", store=met, rank=rank, world_size=ranks)
    run = from_json(frozen.read_text())
    if rank == 0:
        open_output(run)
    torch.distributed.barrier()
    with open(os.devnull, "w") as nowhere:
        train(run, nowhere)
    torch.distributed.barrier()  # nobody leaves before all are done


if __name__ == "__main__":  # checkpoint saving spawns processes that import this file
    main()
