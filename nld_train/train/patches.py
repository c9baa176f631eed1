"""Patches of the pinned libraries that are needed with and without a GPU. Each has its reason, and a test that fails as
soon as the library no longer needs it (tests/train/test_patches.py)."""

import functools
import os
import queue
import sys
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, Any

from nld_train.exit_status import FAILED

if TYPE_CHECKING:
    from megatron.core.optimizer.optimizer import ChainedOptimizer


@functools.cache
def apply_patches() -> None:
    """Apply every patch. Call this before training is set up; the second call does nothing."""
    skip_compiling_prebuilt_helpers()
    end_workers_that_cannot_send()


def leave_wandb_out() -> None:
    """For runs without W&B: Megatron's timers import it whoever runs, which takes 4 to 6 s. None in its place makes
    that import fail as if it were not installed, and Megatron goes on without it."""
    if "wandb" in sys.modules and sys.modules["wandb"] is None:  # left out already
        return
    assert "megatron" not in sys.modules, "Megatron has bound its names already"
    sys.modules["wandb"] = None  # type: ignore[assignment]


def hold_wandb_session(start: Callable[..., Any], end: Callable[..., None]) -> None:
    """Megatron-Bridge starts W&B in the middle of its setup and ends it behind the last step, without limits of time: a
    server that does not answer ends the run, or keeps it from ending. start, end: called in place of `wandb.init` and
    `wandb.finish`, with that function first."""
    import wandb

    wandb.init = functools.partial(start, wandb.init)
    wandb.finish = functools.partial(end, wandb.finish)


def hand_results_over_in_process() -> None:
    """For runs that save between their steps: threads of the rank itself write then, and Megatron hands their results
    over through a manager process all the same. That process imports torch before the first save can end, which was 9
    of its 10 s; a queue of this process does the same at once."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async as of_megatron
    from nvidia_resiliency_ext.checkpointing.async_ckpt import filesystem_async as of_resiliency

    for writer in (of_megatron, of_resiliency):  # the pins decide which of the two is used
        writer._results_queue = queue.Queue()


def end_workers_that_cannot_send() -> None:
    """A loader worker whose batch has no room in shared memory prints so and drops the batch, and its rank would wait
    for it for ever. A worker that ends instead is noticed within seconds."""
    keep = Queue._on_queue_feeder_error  # type: ignore[attr-defined]

    def end(error: Exception, batch: object) -> None:
        keep(error, batch)
        if parent_process() is not None:
            sys.stderr.flush()
            os._exit(FAILED)

    Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


def watch_gradient_norm(optimizer: "ChainedOptimizer", watch: Callable[[float | None], None]) -> None:
    """Call `watch` with the global gradient norm, on every rank, before the weights are updated: Megatron's step has no
    event of its own there."""
    compute = optimizer.get_grad_norm

    def watched() -> float | None:
        norm = compute()
        watch(norm)
        return norm

    optimizer.get_grad_norm = watched


def skip_compiling_prebuilt_helpers() -> None:
    """Skip `compile_helpers` where the prebuilt dataset helper imports: megatron-core's wheel ships it without the
    Makefile that the call runs, and the call would end the process."""
    import megatron.bridge.training.initialize as initialize
    from megatron.core.datasets import helpers_cpp

    assert helpers_cpp.build_sample_idx_int32, "megatron-core's dataset helper is there, but not the one expected"
    initialize.compile_helpers = lambda: None
