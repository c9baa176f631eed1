"""One rank of a test: trains several runs in one process group, because starting Megatron takes longer than they do."""

import os
import sys
from pathlib import Path

import torch

from nld_train.recipe import from_json
from nld_train.train.folder import open_output
from nld_train.train.run import train


def main() -> None:
    torch.distributed.init_process_group("gloo")
    for frozen in sys.argv[1:]:
        run = from_json(Path(frozen).read_text())
        if torch.distributed.get_rank() == 0:
            open_output(run)
        torch.distributed.barrier()
        with open(os.devnull, "w") as nowhere:
            train(run, nowhere)
        from megatron.bridge.training.initialize import destroy_global_state

        destroy_global_state()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":  # checkpoint saving spawns processes that import this file
    main()
