"""The LM-head loss alone, forward and backward: ours, which never holds all logits, against plain cross-entropy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.bench.measure import Alternative, Effort, Measurement, measure_in_turns
from nld_train.bench.outcome import (
    NOTHING,
    BenchOutcome,
    bench_environment,
    mebibytes_text,
    milliseconds_text,
    refusal_lines,
    result_figures,
    teraflops_text,
    time_ratio,
)
from nld_train.loss.cross_entropy import cross_entropy
from nld_train.loss.eager_head import eager_head_loss
from nld_train.loss.lm_head import head_nll
from nld_train.plan.flops import PASSES

PLAIN, CHUNKED = "plain: all logits", "ours: in chunks"
HEAD = ["LM-head loss", "ms (fastest to slowest)", "TFLOP/s, useful", "time / plain", "peak MiB", "memory / plain"]


@dataclass(frozen=True)
class HeadShape:
    """The sizes of an LM-head loss."""

    rows: int  # R, positions that have a loss
    vocabulary: int  # V
    hidden: int  # E

    def __str__(self) -> str:
        return f"{self.rows:,} rows, vocabulary {self.vocabulary:,}, hidden {self.hidden:,}"


@dataclass(frozen=True)
class HeadInputs:
    """The tensors of an LM-head loss."""

    hidden: Tensor  # [R, E]
    weight: Tensor  # [V, E]
    targets: Tensor  # [R] int64
    shares: Tensor  # [R] float32: weight of every position

    def gradients(self, nll: Tensor) -> tuple[Tensor, ...]:
        """The gradients of hidden [R, E] and weight [V, E], from the weighted sum of nll [R]."""
        return self.gradients_of_sum((nll * self.shares.to(nll)).sum())

    def gradients_of_sum(self, total: Tensor) -> tuple[Tensor, ...]:
        """The gradients of hidden [R, E] and weight [V, E], from the weighted sum itself, []."""
        return torch.autograd.grad(total, (self.hidden, self.weight))


def draw_head_inputs(
    shape: HeadShape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> HeadInputs:
    """Inputs whose logits have standard deviation 1, as those of a model at its start: hidden [R, E], weight [V, E]."""

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    return HeadInputs(
        hidden=draw(shape.rows, shape.hidden).to(dtype).requires_grad_(),
        weight=(draw(shape.vocabulary, shape.hidden) / shape.hidden**0.5).to(dtype).requires_grad_(),
        targets=torch.randint(shape.vocabulary, (shape.rows,), generator=generator, device=device),
        shares=torch.rand(shape.rows, generator=generator, device=device),
    )


def bench_loss(shape: HeadShape, dtype: torch.dtype, effort: Effort, device: torch.device) -> BenchOutcome:
    """Measure the plain loss, ours, and ours in the other order of work, at one shape."""
    given = draw_head_inputs(shape, dtype, device, torch.Generator(device).manual_seed(1))
    # Three products of this size: the logits, and the gradients of hidden states and weight.
    useful = PASSES * 2.0 * shape.rows * shape.vocabulary * shape.hidden
    todo = [
        Alternative(PLAIN, lambda: lambda: given.gradients(plain_head_nll(given)), useful),
        Alternative(CHUNKED, lambda: lambda: given.gradients(chunked_head_nll(given)), useful),
        Alternative("gradients in the forward", lambda: lambda: given.gradients_of_sum(eager_head_sum(given)), useful),
    ]
    results = measure_in_turns(todo, effort, device)
    notes = [
        "Peak: above inputs, their gradients included. Ours computes the chunks' logits twice; only once is useful.",
        "Gradients in the forward (loss/eager_head.py) is no part of training yet: the figures here decide.",
    ]
    return BenchOutcome(
        "LM-head loss",
        f"{shape}, {dtype}",
        HEAD,
        _head_loss_cells(results),
        notes + refusal_lines(results),
        {"results": result_figures(results)},
        environment=bench_environment(device),
    )


def _head_loss_cells(results: list[Measurement]) -> list[list[str]]:
    """The table's rows; the first result is the plain loss, with which the others are compared."""
    plain_one = results[0]
    return [
        [
            result.name,
            milliseconds_text(result),
            teraflops_text(result),
            f"{time_ratio(result, plain_one):.2f}" if result.seconds and plain_one.seconds else NOTHING,
            mebibytes_text(result),
            f"1/{plain_one.peak / result.peak:.1f}" if plain_one.peak and result.peak else NOTHING,
        ]
        for result in results
    ]


def plain_head_nll(given: HeadInputs) -> Tensor:
    """Cross-entropy of all positions from all logits [R, V] at once: [R] float32."""
    return cross_entropy(given.hidden @ given.weight.T, given.targets)


def chunked_head_nll(given: HeadInputs) -> Tensor:
    """Cross-entropy of all positions by `head_nll`, which never holds all logits: [R] float32."""
    return head_nll(given.hidden, given.weight, given.targets)


def eager_head_sum(given: HeadInputs) -> Tensor:
    """The weighted sum [] of the cross-entropies by `eager_head_loss`, whose gradients are made in its forward."""
    return eager_head_loss(given.hidden, given.weight, given.targets, given.shares).total
