"""A loss or a gradient norm that is not finite ends the run before a weight changes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.checkpointing import maybe_finalize_async_save
from megatron.bridge.training.state import GlobalState
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nld_train.objectives.contract import MicroBatch
from nld_train.train.leave_watch import LeaveWatch
from nld_train.train.patches import watch_gradient_norm
from nld_train.train.terminal import SharedFailure

MOST_RANKS = 4  # named in the message


@dataclass(frozen=True)
class SeenMicroBatch:
    """A micro-batch whose loss this rank knows."""

    samples: list[int]  # global row numbers
    loss: Tensor  # [] the numerator of its loss, left on its device


class WatchedForwardStep:
    """A forward step that remembers its micro-batches, and lets none of them hide a loss that is not finite."""

    def __init__(self, forward_step: Callable, watch: LeaveWatch) -> None:
        self.forward_step, self.watch = forward_step, watch
        self.seen: list[SeenMicroBatch] = []

    def __call__(
        self, state: GlobalState, data_iterator: Iterator[MicroBatch], model: GPTModel
    ) -> tuple[Tensor, Callable]:
        with self.watch.waits_for_rows():
            batch = next(data_iterator)
        output, loss_function = self.forward_step(state, iter([batch]), model)
        return output, partial(self._loss, loss_function, batch.sample_indices.tolist())

    def _loss(
        self, loss_function: Callable, samples: list[int], output: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loss, count, reported = loss_function(output)
        self.seen.append(SeenMicroBatch(samples, loss.detach()))
        return poison_if_not_finite(loss), count, reported


def poison_if_not_finite(loss: Tensor) -> Tensor:
    """The same loss []. Where it is infinite or NaN its gradient is NaN everywhere; a finite one is multiplied by 1."""
    return loss * (1 + 0 * loss.detach())


class NonFiniteGuard(Callback):
    """Looks at the global gradient norm when the host learns it, which Megatron waits for at every step anyway.

    The norm tells all ranks alike: of gradients and, because a loss that is not finite poisons its gradient, of losses.
    Only where it is not finite are the ranks' losses fetched from their devices, to say whose it was.
    """

    def __init__(self, watched: WatchedForwardStep) -> None:
        self.watched = watched

    def on_train_start(self, context: CallbackContext) -> None:
        """Watch the gradient norm of every step."""
        assert context.optimizer is not None, "Megatron-Bridge gives the optimizer to every event of training"
        watch_gradient_norm(context.optimizer, lambda norm: self._check(norm, context.state))

    def on_train_step_start(self, context: CallbackContext) -> None:
        """Forget the micro-batches of the step before."""
        self.watched.seen.clear()

    def _check(self, norm: float | None, state: GlobalState) -> None:
        if norm is None or math.isfinite(norm):
            return
        # A checkpoint that is being written now is that of an earlier step, and good.
        maybe_finalize_async_save(state, state.cfg.checkpoint, blocking=True)
        own = [(seen.samples, float(seen.loss)) for seen in self.watched.seen]
        ranks: list[list[tuple[list[int], float]]] = [[]] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, own)
        raise SharedFailure(not_finite_message(state.train_state.step + 1, norm, ranks))


def not_finite_message(step: int, norm: float, ranks: list[list[tuple[list[int], float]]]) -> str:
    """The message: the step, the norm and, by rank, the samples (global row numbers) of the micro-batches to blame.

    ranks: for every rank the (samples, loss summed over their tokens) of its micro-batches.
    """
    blamed = {rank: [one for one in seen if not math.isfinite(one[1])] for rank, seen in enumerate(ranks)}
    finite = not any(blamed.values())
    if finite:
        blamed = dict(enumerate(ranks))
    told = [rank for rank, seen in blamed.items() if seen]
    parts = [f"rank {rank} {_micro_batches(blamed[rank], finite)}" for rank in told[:MOST_RANKS]]
    parts += [f"{len(told) - MOST_RANKS} more ranks"] if len(told) > MOST_RANKS else []
    losses = "finite losses" if finite else "loss not finite"
    return f"step {step}: gradient norm {norm}, {losses} ({'; '.join(parts)}); no weight was changed, nothing was saved"


def _micro_batches(seen: list[tuple[list[int], float]], finite: bool) -> str:
    samples = ", ".join(str(sample) for one, _ in seen for sample in one)
    return f"with samples {samples}" if finite else f"{seen[0][1]} with samples {samples}"
