"""Start a run on this machine: the start checks, the output folder, then torchrun."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from nld_train.attention.backends import check_attention_backend as check_attention
from nld_train.config import RunConfig
from nld_train.data.chat_packing import open_packings
from nld_train.doctor.start_checks import check_ranks, check_run_data
from nld_train.exit_status import FINISHED, STOPPED
from nld_train.node_check.nodes import ALONE, Nodes
from nld_train.run_folder.attempts import record_end, record_start
from nld_train.run_folder.checkpoints import complete_steps, newest_complete_step, step_reached
from nld_train.run_folder.paths import data_index_folder, launcher_log, stop_file
from nld_train.start.imported_init import with_imported_init
from nld_train.start.output_folder import open_output
from nld_train.start.supervisor import TorchrunSupervisor
from nld_train.start.torchrun import rank_environment, torchrun_command

logger = logging.getLogger(__name__)


def start_run(run: RunConfig, nodes: Nodes = ALONE, train: Callable[[RunConfig, Nodes], int] | None = None) -> int:
    """Train this node's share of the ranks; returns the exit status. `train` starts the ranks where `train_ranks` is
    not to. Raises: UserError where the run is refused."""
    nodes.ranks(run)
    check_ranks(run, nodes.count)
    check_attention(run, "cuda" if torch.cuda.is_available() else "cpu")
    check_run_data(run)
    if not nodes.first:
        return join_run(run, nodes)
    run = with_imported_init(run)
    step = open_output(run)
    if step is not None and step >= run.train.iterations:
        logger.info(
            "%s is finished: step %s of %s in %s", run.name, f"{step:,}", f"{run.train.iterations:,}", run.output
        )
        return FINISHED
    if step is not None:
        logger.info("resuming %s at step %d from %s", run.name, step, run.output)
    if run.data.chat:
        open_packings(run, data_index_folder(run.output))
    record_start(Path(run.output), step or 0, nodes.labels, os.environ)
    status = (train or train_ranks)(run, nodes)
    record_end(Path(run.output), step_reached(Path(run.output)), status)
    return status


def join_run(run: RunConfig, nodes: Nodes) -> int:
    """Train the share of a node that is not the first: that one alone prepares the output folder, and its ranks are met
    only afterwards."""
    if run.train.iterations in complete_steps(Path(run.output)):
        return FINISHED
    return train_ranks(run, nodes)


def train_ranks(run: RunConfig, nodes: Nodes, command: Sequence[str] = ()) -> int:
    """torchrun on this node, or `command` in its place; returns the exit status of the run."""
    command = command or torchrun_command(run, nodes)
    job = TorchrunSupervisor(run.name, stop_file(run.output))
    log = launcher_log(run.output, nodes.here)
    status = job.run(command, {**os.environ, **rank_environment(run)}, log)
    return status or _exit_status_of(run)


def _exit_status_of(run: RunConfig) -> int:
    """The exit status of a run whose ranks left in order: FINISHED at its last step, STOPPED before it."""
    step = newest_complete_step(Path(run.output))
    if step == run.train.iterations:
        return FINISHED
    logger.warning("%s stopped at step %s of %d, saved; the same command goes on", run.name, step, run.train.iterations)
    return STOPPED
