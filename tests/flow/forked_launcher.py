"""Starts runs as `nld train` does, but forks their ranks from this process, which has imported Megatron once.

A line of JSON in, a list of the words of `nld train`: a child of this process holds and prepares the output folder,
forks the ranks, waits for them and records their end. Lines out: the child's process number, and its exit status.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.exit_status import FINISHED
from nld_train.node_check.nodes import ALONE
from nld_train.recipe import load_recipe
from nld_train.run_folder.attempts import record_end, record_start
from nld_train.run_folder.checkpoints import step_reached
from nld_train.run_folder.output_lock import held_output
from nld_train.signals import PARENT, die_with_parent
from nld_train.start.start_run import prepare_run
from nld_train.start.torchrun import frozen_path, rank_environment
from nld_train.train import cpu_runtime, patches
from nld_train.train.forked_rank import free_port
from nld_train.train.megatron_import import load_megatron
from nld_train.train.rank import rank_main


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    patches.leave_wandb_out()
    load_megatron()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            end_with(launched, load_recipe(*split_words(json.loads(line))))
        print(child, file=answers)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers)


def split_words(words: list[str]) -> tuple[str, list[str]]:
    return words[0], words[1:]


def end_with(function, *arguments) -> None:
    """End this forked process with the status that the function returns."""
    status = 1
    try:
        status = function(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def launched(run: RunConfig) -> int:
    """What start_run.start_first_node does, with forked ranks in the place of torchrun."""
    output = Path(run.output)
    with held_output(output, lambda owner: os._exit(1)):
        prepared = prepare_run(run)
        if prepared is None:
            return FINISHED
        record_start(output, step_reached(output), ALONE.labels, os.environ)
        status = ranks_status(prepared)
        record_end(output, step_reached(output), status)
    return status


def ranks_status(run: RunConfig) -> int:
    """0, or 1 once a rank has failed; the others are ended then."""
    os.environ |= {**rank_environment(run), PARENT: str(os.getpid()), "MASTER_PORT": str(free_port())}
    running = set()
    for rank in range(run.parallel.world_size):
        child = os.fork()
        if not child:
            end_with(rank_status, rank, run)
        running.add(child)
    while running:
        ended, status = os.wait()
        running.discard(ended)
        if status:
            for rank in running:
                os.kill(rank, signal.SIGKILL)
            return 1
    return 0


def rank_status(rank: int, run: RunConfig) -> int:
    """A rank, as rank.py starts it."""
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)
    size = str(run.parallel.world_size)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    sys.argv = ["rank", frozen_path(run)]
    return rank_main()


if __name__ == "__mp_main__":  # the process that a rank spawns to write checkpoints
    die_with_parent()
    cpu_runtime.install_cpu_runtime_in_writer()
if __name__ == "__main__":
    main()
