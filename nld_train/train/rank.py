"""One rank of a run: `nld train` starts this under torchrun with the run's frozen configuration."""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

from nld_train.config import RunConfig
from nld_train.exit_status import FAILED, FINISHED
from nld_train.objectives.choose import objective_of
from nld_train.recipe import run_from_json
from nld_train.signals import StopRequest, die_with_parent, end_children
from nld_train.train import cpu_runtime, patches, terminal
from nld_train.train.leave_watch import LeaveWatch
from nld_train.train.megatron_import import load_megatron
from nld_train.train.wandb_session import WandbSession


def rank_main() -> int:
    """Train the run whose run.json is the only argument, and return the exit status of this process."""
    run = run_from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rank = int(os.environ["RANK"])
    request = StopRequest()
    request.listen()
    screen = terminal.redirect_to_log(run.output, rank)
    watch = LeaveWatch(run, rank, request, screen)
    watch.start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        if run.log.wandb == "disabled":
            patches.leave_wandb_out()
        else:
            session = WandbSession(run, partial(terminal.tell_line, screen))
            patches.hold_wandb_session(session.start, session.keep_on)
        train_rank(run, screen, watch)
    except SystemExit:
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        if watch.leaving():
            return FINISHED
        terminal.tell_failure(screen, run.output, rank, error)
        return FAILED
    finally:
        end_children()
    return FINISHED


def train_rank(run: RunConfig, screen: TextIO, watch: LeaveWatch) -> None:
    """Megatron-Bridge's own training loop on this run. watch: told of every step; it need not have been started."""
    use_own_cores()
    load_megatron()
    if not run.checkpoint.asynchronous:
        patches.hand_results_over_in_process()
    from megatron.bridge.training.callbacks import CallbackManager
    from megatron.bridge.training.pretrain import pretrain

    from nld_train.train.bridge_config import bridge_config
    from nld_train.train.callbacks.carried_optimizer import CarriedOptimizer, carries_optimizer
    from nld_train.train.callbacks.completion import CheckpointCompletion
    from nld_train.train.callbacks.draft_evaluation import DraftEvaluation
    from nld_train.train.callbacks.evaluated_figures import EvaluatedFigures
    from nld_train.train.callbacks.first_evaluation import FirstEvaluation
    from nld_train.train.callbacks.health import NonFiniteGuard, WatchedForwardStep
    from nld_train.train.callbacks.memory_trial import MemoryTrialBatch, has_memory_trial
    from nld_train.train.callbacks.progress import ProgressReporter
    from nld_train.train.callbacks.stop import StopOnRequest
    from nld_train.train.forward_step import ObjectiveStep

    config = bridge_config(run)
    objective = objective_of(run)
    forward_step = ObjectiveStep(objective)
    watched = WatchedForwardStep(forward_step, watch)
    callbacks = CallbackManager()
    is_last_rank = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    if has_memory_trial(run):
        callbacks.add(MemoryTrialBatch(run, forward_step, screen))  # before all else, so that it fails first
    # Before the reporter, which shows what they find.
    callbacks.add([DraftEvaluation(run, screen), EvaluatedFigures(run, objective, screen)])
    callbacks.add([ProgressReporter(run, screen, active=is_last_rank), FirstEvaluation(forward_step, callbacks)])
    callbacks.add([NonFiniteGuard(watched), CheckpointCompletion(run), StopOnRequest(run, watch)])
    if carries_optimizer(run):
        callbacks.add(CarriedOptimizer(run))
    pretrain(config, watched, callbacks)


def use_own_cores() -> None:
    """Share the machine's cores among its ranks: torch would otherwise start all of them in each."""
    if not torch.cuda.is_available():
        ranks_here = int(os.environ["LOCAL_WORLD_SIZE"])
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))


if __name__ == "__mp_main__":  # the process that a rank spawns to write checkpoints
    die_with_parent()
    cpu_runtime.install_cpu_runtime_in_writer()
if __name__ == "__main__":
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)  # loader workers, and what hands on a writer's results
    sys.exit(rank_main())
