"""The LM-head loss alone, forward and backward: ours, which never holds all logits, against plain cross-entropy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.bench.measure import Alternative, Effort, Measured, measure
from nld_train.bench.outcome import (
    NOTHING,
    Outcome,
    environment,
    mebibytes,
    milliseconds,
    numbers,
    ratio,
    refusals,
    teraflops,
)
from nld_train.loss.cross_entropy import cross_entropy
from nld_train.loss.lm_head import head_nll
from nld_train.plan.flops import PASSES

HEAD = ["LM-head loss", "ms (fastest to slowest)", "TFLOP/s, useful", "time / plain", "peak MiB", "memory / plain"]


@dataclass(frozen=True)
class HeadShape:
    rows: int  # R, positions that have a loss
    vocabulary: int  # V
    hidden: int  # E

    def __str__(self) -> str:
        return f"{self.rows:,} rows, vocabulary {self.vocabulary:,}, hidden {self.hidden:,}"


@dataclass(frozen=True)
class HeadInputs:
    hidden: Tensor  # [R, E]
    weight: Tensor  # [V, E]
    targets: Tensor  # [R] int64
    shares: Tensor  # [R] float32: weight of every position

    def gradients(self, nll: Tensor) -> tuple[Tensor, ...]:
        """Of hidden states and weight, of the weighted sum."""
        return torch.autograd.grad((nll * self.shares.to(nll)).sum(), (self.hidden, self.weight))


def draw_head(shape: HeadShape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> HeadInputs:
    """Logits of standard deviation 1 from standard normal hidden states, as a model has them at its start."""

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    return HeadInputs(
        hidden=draw(shape.rows, shape.hidden).to(dtype).requires_grad_(),
        weight=(draw(shape.vocabulary, shape.hidden) / shape.hidden**0.5).to(dtype).requires_grad_(),
        targets=torch.randint(shape.vocabulary, (shape.rows,), generator=generator, device=device),
        shares=torch.rand(shape.rows, generator=generator, device=device),
    )


def bench_loss(shape: HeadShape, dtype: torch.dtype, effort: Effort, device: torch.device) -> Outcome:
    """Measure both at one shape."""
    given = draw_head(shape, dtype, device, torch.Generator(device).manual_seed(1))
    # Logits, and the gradients of hidden states and weight
    useful = PASSES * 2.0 * shape.rows * shape.vocabulary * shape.hidden
    todo = [
        Alternative("plain: all logits", lambda: lambda: given.gradients(plain(given)), useful),
        Alternative("ours: in chunks", lambda: lambda: given.gradients(chunked(given)), useful),
    ]
    results = measure(todo, effort, device)
    notes = [
        "Peak: above inputs, their gradients included. The chunks' logits are computed twice; only once is useful."
    ]
    return Outcome(
        "LM-head loss",
        f"{shape}, {dtype}",
        HEAD,
        rows(results),
        notes + refusals(results),
        {"results": numbers(results)},
        environment=environment(device),
    )


def rows(results: list[Measured]) -> list[list[str]]:
    plain_one = results[0]
    return [
        [
            result.name,
            milliseconds(result),
            teraflops(result),
            f"{ratio(result, plain_one):.2f}" if result.seconds and plain_one.seconds else NOTHING,
            mebibytes(result),
            f"1/{plain_one.peak / result.peak:.1f}" if plain_one.peak and result.peak else NOTHING,
        ]
        for result in results
    ]


def plain(given: HeadInputs) -> Tensor:
    return cross_entropy(given.hidden @ given.weight.T, given.targets)


def chunked(given: HeadInputs) -> Tensor:
    return head_nll(given.hidden, given.weight, given.targets)
