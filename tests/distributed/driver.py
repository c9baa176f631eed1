"""Trains the runs of tests on real gloo ranks: a process that has imported Megatron once, and forks ranks on request.

Importing Megatron takes longer than these runs do. Every run leaves some 60 threads of gloo behind in its process,
which wake up now and then: those of 20 runs on 4 ranks took all of a 2-core machine, and those of ten on 8 as well. So
ranks end after ten runs, or fewer where there are many ranks.

A line of JSON in, {"ranks": 2, "runs": [paths], "log": path}: the runs are trained one after another, on ranks that
write to the log. A line out: 0, or the status of a rank that failed.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from nld_train.recipe import run_from_json
from nld_train.signals import StopRequest
from nld_train.start.output_folder import open_output
from nld_train.train import patches
from nld_train.train.forked_rank import fork_rank, free_port
from nld_train.train.leave_watch import LeaveWatch
from nld_train.train.megatron_import import load_megatron
from nld_train.train.rank import train_rank

MOST_RUNS, MOST_LEFT_BEHIND = 10, 16  # runs of a process; runs of all processes together


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    patches.leave_wandb_out()
    load_megatron()
    for line in sys.stdin:
        asked = json.loads(line)
        status = 0
        most = min(MOST_RUNS, MOST_LEFT_BEHIND // asked["ranks"])
        for first in range(0, len(asked["runs"]), most):
            status = status or fork_ranks(asked["ranks"], asked["runs"][first : first + most], asked["log"])
        print(status, file=answers, flush=True)


def fork_ranks(ranks: int, runs: Sequence[str], log: str) -> int:
    """0, or the status of the first rank that failed; the others are ended then."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        store = Path(folder) / "store"
        running = {
            fork_rank(rank, ranks, port, Path(log), partial(train_all, rank, ranks, runs, store))
            for rank in range(ranks)
        }
        failed = 0
        while running:
            ended, status = os.wait()
            running.discard(ended)
            if status and not failed:
                failed = os.waitstatus_to_exitcode(status)
                for rank in running:
                    os.kill(rank, signal.SIGKILL)
    return failed


def train_all(rank: int, ranks: int, runs: Sequence[str], store: Path) -> None:
    """The runs, one after another in one process group."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    from megatron.bridge.training.initialize import destroy_global_state

    for frozen in runs:
        run = run_from_json(Path(frozen).read_text())
        if rank == 0:
            open_output(run)
        torch.distributed.barrier()
        with open(os.devnull, "w") as nowhere:
            train_rank(run, nowhere, LeaveWatch(run, rank, StopRequest(), nowhere))
        destroy_global_state()
    torch.distributed.barrier()  # nobody leaves before all are done


if __name__ == "__main__":  # checkpoint saving spawns processes that import this file
    main()
