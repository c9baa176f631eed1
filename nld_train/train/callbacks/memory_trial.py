"""A trial of the largest batch there can be, before the first step: a run whose memory does not suffice fails in its
first minute and says what to change, and not after days, when many tokens happen to be masked at once."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, TextIO

import torch
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from nld_train.config import RunConfig
from nld_train.dual_stream.context_shard import ContextShard
from nld_train.dual_stream.fullest_row import fullest_row
from nld_train.errors import UserError
from nld_train.objectives.contract import MicroBatch, Objective
from nld_train.recipe import parse_overrides, replace_settings
from nld_train.run_folder.refusal import record_refusal
from nld_train.train.before_training import weights_as_they_are
from nld_train.train.forward_step import ObjectiveStep
from nld_train.train.terminal import tell_line

logger = logging.getLogger(__name__)
MOMENT_BYTES = 8  # of a trained parameter: Adam's two moments in float32
# In the messages of plain RuntimeErrors: torch's for a host, and those of what allocates on a GPU beside torch (CUDA
# itself and NCCL; cuBLAS and cuDNN), which comes too late where torch has taken nearly all.
ALLOCATORS = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED")


def has_memory_trial(run: RunConfig) -> bool:
    """Whether a start of this run, on this machine, tries the largest batch first."""
    return run.train.memory_trial == "always" or (run.train.memory_trial == "auto" and torch.cuda.is_available())


def largest_micro_batch(run: RunConfig, objective: Objective, shard: ContextShard) -> MicroBatch:
    """The micro-batch with most LM-head rows: every token of text supervised and masked, images in what is left."""
    return objective.collate_draws([objective.draw_fullest(fullest_row(run))] * run.train.micro_batch, shard)


class MemoryTrialBatch(Callback):
    """Runs a step's forward and backward passes on the largest batch, and leaves no trace of it in the training.

    The weights do not change, because the optimizer takes no step. Of the loop's state the gradients are zeroed, random
    generators are set back, and its rows are not touched: the trial's rows are made up.
    """

    def __init__(self, run: RunConfig, forward_step: ObjectiveStep, terminal: TextIO) -> None:
        self.run, self.forward_step, self.terminal = run, forward_step, terminal

    def on_train_start(self, context: CallbackContext) -> None:
        """Try it. Raises: UserError where the memory does not suffice; its line stays in the output folder, so that
        every node ends with the status of bad input, and no scheduler starts the same again."""
        if context.state.train_state.step >= self.run.train.iterations:
            return
        try:
            with random_state_kept(), weights_as_they_are(context):
                self._run_passes(context)
        except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError
            if not is_out_of_memory(error):
                raise
            refusal = not_enough_memory(self.run, error)
            record_refusal(Path(self.run.output), str(refusal))
            raise refusal from error
        self._tell_peak()

    def _run_passes(self, context: CallbackContext) -> None:
        """All micro-batches of a step, forward and backward, beside what the optimizer will hold from step 1 on."""
        shard = ContextShard(
            parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
        )
        batches = repeat(largest_micro_batch(self.run, self.forward_step.objective, shard))
        moments = [
            torch.empty(count, dtype=torch.uint8, device=device)
            for device, count in missing_moment_bytes(context.optimizer).items()
        ]
        self._zero_gradients(context)
        get_forward_backward_func()(
            forward_step_func=lambda batch_iterator, model: self.forward_step(context.state, batch_iterator, model),
            data_iterator=[batches] * len(context.model) if len(context.model) > 1 else batches,
            model=context.model,
            num_microbatches=get_num_microbatches(),
            seq_length=context.state.cfg.model.seq_length,
            micro_batch_size=self.run.train.micro_batch,
            forward_only=False,
        )
        del moments
        self._zero_gradients(context)

    @staticmethod
    def _zero_gradients(context: CallbackContext) -> None:
        """As Megatron-Bridge's step does before its forward passes."""
        for chunk in context.model:
            chunk.zero_grad_buffer()
        context.optimizer.zero_grad()

    def _tell_peak(self) -> None:
        """Say what the trial took, on the first rank; the peak is the largest of all ranks."""
        if not torch.cuda.is_available():
            if torch.distributed.get_rank() == 0:
                logger.info("memory trial: a batch at full masking went through")
            return
        peak = torch.tensor(torch.cuda.max_memory_reserved(), device=torch.cuda.current_device())
        torch.distributed.all_reduce(peak, op=torch.distributed.ReduceOp.MAX)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if torch.distributed.get_rank() == 0:
            there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            peak_text = f"{int(peak) / 1e9:.1f} of {there / 1e9:.1f} GB at the peak"
            tell_line(self.terminal, f"memory trial: a batch at full masking fits, {peak_text}")


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Set torch's and Megatron's generators back behind what is done inside: dropout draws from them."""
    tracker = get_cuda_rng_tracker()
    host, device, tracked = torch.get_rng_state(), torch.cuda.get_rng_state(), tracker.get_states()
    yield
    tracker.set_states(tracked)
    torch.cuda.set_rng_state(device)
    torch.set_rng_state(host)


def missing_moment_bytes(optimizer: Any) -> dict[torch.device, int]:
    """Bytes of Adam's moments that the first step of this rank will make, by device; a resumed optimizer has them."""
    found: dict[torch.device, int] = {}
    for part in optimizer.chained_optimizers:
        held = part.optimizer.state
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                if not held.get(parameter):
                    found[parameter.device] = found.get(parameter.device, 0) + MOMENT_BYTES * parameter.numel()
    return found


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is memory that failed, of a device or of the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(name in str(error) for name in ALLOCATORS)


def not_enough_memory(run: RunConfig, error: Exception) -> UserError:
    """What a run is told whose largest batch does not fit: the settings that take less and that it can have on as many
    ranks, the cheapest first."""
    cut = run.parallel
    less = [
        f"train.micro_batch={run.train.micro_batch // 2}" if run.train.micro_batch > 1 else "",
        "parallel.recompute=selective" if cut.recompute == "none" else "",
        "parallel.recompute=full" if cut.recompute != "full" else "",
        f"parallel.tensor={2 * cut.tensor}",
        f"parallel.context={2 * cut.context}" if run.objective is None else "",
    ]
    advice = [setting for setting in filter(None, less) if _is_possible(run, setting)]
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    batch = f"train.micro_batch={run.train.micro_batch} rows of {run.data.sequence_length:,} tokens, all of them masked"
    return UserError(
        f"out of memory on the largest batch, {batch}: {reason}",
        "a layout whose ranks hold such a batch: training meets it sooner or later",
        f"try one of {', '.join([*advice, 'more ranks'])}; `nld train {run.name} --dry-run` plans each",
    )


def _is_possible(run: RunConfig, setting: str) -> bool:
    """Whether the run could be started with this setting, "key=value"."""
    try:
        replace_settings(run, parse_overrides([setting]))
    except UserError:
        return False
    return True
