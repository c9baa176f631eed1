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
import socket
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from nld_train.recipe import run_from_json
from nld_train.signals import StopRequest, end_children
from nld_train.start.output_folder import open_output
from nld_train.train import cpu_runtime, patches
from nld_train.train.leave_watch import LeaveWatch
from nld_train.train.rank import train_rank

MOST_RUNS, MOST_LEFT_BEHIND = 10, 16  # runs of a process; runs of all processes together


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    load_megatron()
    for line in sys.stdin:
        asked = json.loads(line)
        status = 0
        most = min(MOST_RUNS, MOST_LEFT_BEHIND // asked["ranks"])
        for first in range(0, len(asked["runs"]), most):
            status = status or fork_ranks(asked["ranks"], asked["runs"][first : first + most], asked["log"])
        print(status, file=answers, flush=True)


def load_megatron() -> None:
    """Everything that a run imports, and none of it started: threads would not survive the fork."""
    cpu_runtime.install_cpu_runtime()
    patches.apply_patches()
    import megatron.bridge.training.pretrain  # noqa: F401

    import nld_train.train.bridge_config
    import nld_train.train.callbacks.progress  # noqa: F401


def fork_ranks(ranks: int, runs: Sequence[str], log: str) -> int:
    """0, or the status of the first rank that failed; the others are ended then."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        running = {fork_rank(rank, ranks, runs, Path(folder) / "store", port, log) for rank in range(ranks)}
        failed = 0
        while running:
            ended, status = os.wait()
            running.discard(ended)
            if status and not failed:
                failed = os.waitstatus_to_exitcode(status)
                for rank in running:
                    os.kill(rank, signal.SIGKILL)
    return failed


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def fork_rank(rank: int, ranks: int, runs: Sequence[str], store: Path, port: int, log: str) -> int:
    """The process number of a rank that trains the runs."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ |= {
            **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        train_all(rank, ranks, runs, store)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        end_children()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


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
