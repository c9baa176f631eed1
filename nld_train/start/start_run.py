"""Start a run on this machine: the start checks, the output folder, then torchrun."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from nld_train.attention.backends import check_attention_backend
from nld_train.config import RunConfig
from nld_train.data.identity import record_data_identity
from nld_train.data.run_rows import open_run_rows
from nld_train.data.verified import verify_run_data
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


def start_run(run: RunConfig, nodes: Nodes = ALONE) -> int:
    """Train this node's share of the ranks.

    Returns: the run's exit status (nld_train/exit_status.py). Raises: UserError where the run is refused; nothing has
    been started then.
    """
    if not nodes.first:
        check_on_this_node(run, nodes)
        return join_run(run, nodes)
    prepared = prepare_run(run, nodes)
    if prepared is None:
        return FINISHED
    return train_and_record(prepared, nodes, torchrun_command(prepared, nodes))


def check_on_this_node(run: RunConfig, nodes: Nodes) -> None:
    """Refuse a run whose share of this node cannot be trained here. Raises: UserError."""
    nodes.ranks(run)
    check_ranks(run, nodes.count)
    check_attention_backend(run, "cuda" if torch.cuda.is_available() else "cpu")
    check_run_data(run)
    verify_run_data(run)


def prepare_run(run: RunConfig, nodes: Nodes) -> RunConfig | None:
    """Do on the first node what comes before the ranks.

    Returns: the run as its ranks will read it, or None where its last step is saved already. Raises: UserError.
    """
    # 1. The checks that write nothing.
    check_on_this_node(run, nodes)
    # 2. The weights: a Hugging Face folder becomes a checkpoint of the run's own.
    run = with_imported_init(run)
    # 3. The output folder: which step is resumed, and the frozen configuration.
    step = open_output(run)
    if step is not None and step >= run.train.iterations:
        reached = f"step {step:,} of {run.train.iterations:,}"
        logger.info("%s is finished: %s in %s", run.name, reached, run.output)
        return None
    if step is not None:
        logger.info("resuming %s at step %d from %s", run.name, step, run.output)
    # 4. Which data it is, and which tokens make which row, made once: ranks that start together only read it.
    record_data_identity(run, resumes=step is not None)
    open_run_rows(run, data_index_folder(run.output))
    # 5. The record, last: whoever reads it finds a start whose ranks did start.
    record_start(Path(run.output), step or 0, nodes.labels, os.environ)
    return run


def train_and_record(run: RunConfig, nodes: Nodes, command: Sequence[str]) -> int:
    """Train a prepared run on the first node, and record how it ended; returns the run's exit status."""
    status = train_ranks(run, nodes, command)
    record_end(Path(run.output), step_reached(Path(run.output)), status)
    return status


def join_run(run: RunConfig, nodes: Nodes) -> int:
    """Train the ranks of a node that is not the first; returns the run's exit status.

    The first node alone prepares the output folder. Its torchrun starts afterwards, and torchrun here waits for it.
    """
    if run.train.iterations in complete_steps(Path(run.output)):
        return FINISHED
    return train_ranks(run, nodes, torchrun_command(run, nodes))


def train_ranks(run: RunConfig, nodes: Nodes, command: Sequence[str]) -> int:
    """Run the command that starts this node's ranks to its end; returns the run's exit status.

    Raises: UserError where the ranks left in order and no checkpoint is complete.
    """
    supervisor = TorchrunSupervisor(run.name, stop_file(run.output))
    log = launcher_log(run.output, nodes.node_rank)
    status = supervisor.run(command, {**os.environ, **rank_environment(run)}, log)
    return status or _exit_status_of(run)


def _exit_status_of(run: RunConfig) -> int:
    """The exit status of a run whose ranks left in order: FINISHED at its last step, STOPPED before it."""
    step = newest_complete_step(Path(run.output))
    if step == run.train.iterations:
        return FINISHED
    logger.warning("%s stopped at step %s of %d, saved; the same command goes on", run.name, step, run.train.iterations)
    return STOPPED
