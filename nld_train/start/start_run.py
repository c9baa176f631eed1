"""Start a run on this machine: the start checks, the output folder, then torchrun."""

import logging
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from nld_train.attention.backends import check_attention_backend
from nld_train.config import RunConfig
from nld_train.data.identity import record_data_identity
from nld_train.data.run_rows import open_run_rows
from nld_train.data.verified import verified_run_data
from nld_train.doctor.start_checks import check_ranks, check_run_data
from nld_train.exit_status import FAILED, FINISHED, LEFT_AT_ONCE, REFUSED, STOPPED
from nld_train.node_check.nodes import ALONE, Nodes
from nld_train.run_folder.attempts import record_end, record_start
from nld_train.run_folder.checkpoints import complete_steps, step_reached
from nld_train.run_folder.early_end import early_end_step
from nld_train.run_folder.output_lock import held_output
from nld_train.run_folder.paths import data_index_folder, launcher_log
from nld_train.run_folder.refusal import read_refusal
from nld_train.run_folder.stop_file import stop_file
from nld_train.start.imported_init import with_imported_init
from nld_train.start.output_folder import open_output
from nld_train.start.supervisor import StoppedBeforeStart, TorchrunSupervisor
from nld_train.start.torchrun import rank_environment, torchrun_command

logger = logging.getLogger(__name__)


def start_run(run: RunConfig, nodes: Nodes = ALONE) -> int:
    """Train this node's share of the ranks.

    Returns: the run's exit status (nld_train/exit_status.py). Raises: UserError where the run is refused; nothing has
    been started then.
    """
    check_on_this_node(run, nodes)
    if not nodes.first:
        return join_run(run, nodes)
    return start_first_node(run, nodes, partial(torchrun_command, nodes=nodes), announce=lambda _: None)


def start_first_node(
    run: RunConfig,
    nodes: Nodes,
    command_of: Callable[[RunConfig], Sequence[str]],
    announce: Callable[[bool], None],
) -> int:
    """Hold the output folder, prepare it, run the command that starts this node's ranks, and record how they ended.

    command_of: from the run as its ranks will read it. announce: told whether ranks are started now; False: the last
    step is saved already. Returns: the exit status. Raises: UserError.
    """
    output, supervisor = Path(run.output), TorchrunSupervisor(run.name, stop_file(run.output), first=True)
    with held_output(output, supervisor.give_way), supervisor:
        try:
            with verified_run_data(run, supervisor.refuse):
                prepared = prepare_run(run)
                announce(prepared is not None)
                if prepared is None:
                    return FINISHED
                record_start(output, step_reached(output), nodes.labels, os.environ)
                status = train_ranks(prepared, nodes, command_of(prepared), supervisor)
        except StoppedBeforeStart as request:
            return _stopped_before_start(run, request)
        if not supervisor.gave_way:
            record_end(output, step_reached(output), status)
    return status


def _stopped_before_start(run: RunConfig, request: StoppedBeforeStart) -> int:
    logger.warning("%s: %s is stopped before its ranks were started; the same command goes on", request, run.name)
    return LEFT_AT_ONCE if str(request) == signal.SIGINT.name else STOPPED


def check_on_this_node(run: RunConfig, nodes: Nodes) -> None:
    """Refuse a run whose share of this node cannot be trained here. Raises: UserError."""
    nodes.ranks(run)
    check_ranks(run, nodes.count)
    check_attention_backend(run, "cuda" if torch.cuda.is_available() else "cpu")
    check_run_data(run)


def prepare_run(run: RunConfig) -> RunConfig | None:
    """Do on the first node what comes before the ranks.

    Returns: the run as its ranks will read it, or None where its last step is saved already. Raises: UserError.
    """
    # 1. The weights: a Hugging Face folder becomes a checkpoint of the run's own.
    run = with_imported_init(run)
    # 2. The output folder: which step is resumed, and the frozen configuration.
    step = open_output(run)
    if step is not None and _is_last(run, step):
        reached = f"step {step:,} of {run.train.iterations:,}"
        logger.info("%s is finished: %s in %s", run.name, reached, run.output)
        return None
    if step is not None:
        logger.info("resuming %s at step %d from %s", run.name, step, run.output)
    # 3. Which data it is, and which tokens make which row, made once: ranks that start together only read it.
    record_data_identity(run, resumes=step is not None)
    open_run_rows(run, data_index_folder(run.output))
    return run


def join_run(run: RunConfig, nodes: Nodes) -> int:
    """Train the ranks of a node that is not the first; returns the run's exit status.

    The first node alone prepares the output folder. Its torchrun starts afterwards, and torchrun here waits for it.
    """
    if any(_is_last(run, step) for step in complete_steps(Path(run.output))):
        return FINISHED
    try:
        with TorchrunSupervisor(run.name, stop_file(run.output), first=False) as supervisor:
            return train_ranks(run, nodes, torchrun_command(run, nodes), supervisor)
    except StoppedBeforeStart as request:
        return _stopped_before_start(run, request)


def train_ranks(run: RunConfig, nodes: Nodes, command: Sequence[str], supervisor: TorchrunSupervisor) -> int:
    """Run the command that starts this node's ranks to its end; returns the run's exit status."""
    log = launcher_log(run.output, nodes.node_rank)
    status = supervisor.run(command, {**os.environ, **rank_environment(run)}, log)
    if status == FAILED and read_refusal(Path(run.output)) is not None:
        return REFUSED
    return status or _exit_status_of(run)


def _is_last(run: RunConfig, step: int) -> bool:
    """Whether a saved step is the last of the run, by its iterations or by its evaluations."""
    return step >= run.train.iterations or step == early_end_step(Path(run.output))


def _exit_status_of(run: RunConfig) -> int:
    """The exit status of a run whose ranks left in order: FINISHED at its last step, STOPPED before it."""
    step = step_reached(Path(run.output))
    if _is_last(run, step):
        return FINISHED
    saved = f"step {step} of {run.train.iterations}, saved" if step else "its first step: nothing is saved"
    logger.warning("%s stopped at %s; the same command goes on", run.name, saved)
    return STOPPED
