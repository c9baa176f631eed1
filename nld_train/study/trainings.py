"""Trains the runs of a study: each once, as soon as the run that it starts from is finished, a few at a time.

Every run is an ordinary run: `nld report` reads its folder. A study that is stopped goes on with the same command;
the runs under way go on at their last checkpoint, which is their start where they are short.
"""

import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from nld_train.config import RunConfig
from nld_train.plan.row_counts import row_positions
from nld_train.run_folder.checkpoints import complete_steps
from nld_train.run_folder.output_lock import held_output
from nld_train.run_folder.paths import logs_folder
from nld_train.signals import PARENT, StopRequest, die_with_parent

logger = logging.getLogger(__name__)
SECONDS_PER_POSITION = 1.4e-4  # of the tiny model's step on one core of LOG's machine: 0.28 s for 2,048 positions
START_SECONDS = 6.0  # of every run: its model is built, its data opened, its checkpoint written
LOG_NAME = "study.log"


def untrained_runs(runs: Sequence[RunConfig]) -> list[RunConfig]:
    """Those of the runs that are still to be trained."""
    return [run for run in runs if not is_trained(run)]


def expected_minutes(runs: Sequence[RunConfig], workers: int) -> float:
    """Minutes of all the runs, so many at a time, about."""
    return sum(map(expected_seconds, runs)) / workers / 60


class TrainingFailed(Exception):
    """A run of a study ended before its last step; the text says where to look."""


class RunUnderWay(NamedTuple):
    """A run, the cores that it has, and when it was started."""

    run: RunConfig
    cores: list[int]
    since: float


def is_trained(run: RunConfig) -> bool:
    """Whether the last step of a run is saved."""
    return run.train.iterations in complete_steps(Path(run.output))


def expected_seconds(run: RunConfig) -> float:
    """Seconds of a run on one core, about: a forward costs a third of a step."""
    positions = row_positions(run) * run.train.global_batch
    return START_SECONDS + SECONDS_PER_POSITION * positions * (run.train.iterations + 2 * run.train.eval_batches / 3)


def train_runs(runs: Sequence[RunConfig], workers: int, log: Path) -> None:
    """Train the runs that are not trained yet, `workers` at a time, each on its share of the cores; says how far it is.

    log: for what Megatron says when it is imported.

    Raises: TrainingFailed; the runs that are finished stay.
    """
    waiting = untrained_runs(runs)
    if not waiting:
        return
    from nld_train.train import patches
    from nld_train.train.forked_rank import output_into
    from nld_train.train.megatron_import import load_megatron

    logger.info("loading Megatron")
    with output_into(log):
        patches.leave_wandb_out()
        load_megatron()
    os.environ[PARENT] = str(os.getpid())
    whole = sum(map(expected_seconds, waiting))
    began, done, count = time.monotonic(), 0.0, len(waiting)
    cores = sorted(os.sched_getaffinity(0))
    free = [cores[worker::workers] for worker in range(workers)]
    running: dict[int, RunUnderWay] = {}
    with ended_children(running), tempfile.TemporaryDirectory() as stores:
        while waiting or running:
            # 1. Start what can be started.
            ready = [run for run in waiting if run.init is None or not is_awaited(run.init, waiting, running)]
            for run in ready[: len(free)]:
                waiting.remove(run)
                share = free.pop()
                child = start_run_on(run, share, Path(stores) / str(len(waiting)))
                running[child] = RunUnderWay(run, share, time.monotonic())
            # 2. Wait for one to end.
            child, status, usage = os.wait3(0)
            ended = running.pop(child)
            free.append(ended.cores)
            if status:
                said = logs_folder(ended.run.output) / LOG_NAME
                raise TrainingFailed(f"{ended.run.name} failed: read the end of {said}")
            # 3. Say how far it is.
            done += expected_seconds(ended.run)
            left = (time.monotonic() - began) * (whole / done - 1)
            number = count - len(waiting) - len(running)
            took = f"{time.monotonic() - ended.since:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of CPU"
            logger.info("[%d/%d] %s: %s; %.0f min left", number, count, ended.run.name, took, left / 60)


def is_awaited(output: str, waiting: Sequence[RunConfig], running: Mapping[int, RunUnderWay]) -> bool:
    """Whether the run of that folder is still to be trained."""
    return output in {run.output for run in waiting} | {each.run.output for each in running.values()}


def start_run_on(run: RunConfig, cores: Sequence[int], store: Path) -> int:
    """The process number of a child that trains the run on those cores."""
    from nld_train.train.forked_rank import fork_rank, free_port

    return fork_rank(0, 1, free_port(), logs_folder(run.output) / LOG_NAME, partial(_train_alone, run, cores, store))


def _train_alone(run: RunConfig, cores: Sequence[int], store: Path) -> None:
    """Train a run of one rank in this process, which does nothing else."""
    import torch

    from nld_train.start.start_run import prepare_run
    from nld_train.train.leave_watch import LeaveWatch
    from nld_train.train.rank import train_rank

    die_with_parent()
    os.sched_setaffinity(0, cores)
    with held_output(Path(run.output), lambda owner: os._exit(1)):
        prepared = prepare_run(run)
        assert prepared is not None, f"{run.output} is finished already"
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        with open(os.devnull, "w") as nowhere:
            train_rank(prepared, nowhere, LeaveWatch(prepared, 0, StopRequest(), nowhere))


@contextmanager
def ended_children(running: Mapping[int, RunUnderWay]) -> Iterator[None]:
    """However the block ends, no child goes on."""
    try:
        yield
    finally:
        for child in running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
