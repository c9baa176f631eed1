"""Arithmetic of choosing tokens: no model, no cache. This file travels with every export.

Letters: B rows, n positions, V vocabulary size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


def row_generators(generator: Generator | Sequence[Generator] | None, rows: int) -> list[Generator]:
    """One generator per row, so that what a row draws does not depend on the rows beside it.

    `generator`: one per row; or one that seeds them; or None, then torch's own seeds them.
    """
    if isinstance(generator, Sequence):
        assert len(generator) == rows, f"{len(generator)} generators for {rows} rows"
        return list(generator)
    device = torch.device("cpu") if generator is None else generator.device
    seeds = torch.randint(2**62, (rows,), generator=generator, device=device).tolist()
    return [Generator().manual_seed(seed) for seed in seeds]


class Sampler:
    """Draws tokens at one temperature and top-p. Temperature 0 is the same arithmetic with all weight on the argmax."""

    def __init__(
        self, temperature: float, top_p: float, generator: Generator | Sequence[Generator] | None, rows: int
    ) -> None:
        self.temperature, self.top_p = temperature, top_p
        self.generators = row_generators(generator, rows) if temperature > 0 else []

    def distribution(self, logits: Tensor) -> Tensor:
        """Probabilities of logits [..., V], of the same shape; float32, or float64 for float64 logits."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature == 0:
            return torch.zeros_like(wide).scatter(-1, wide.argmax(-1, keepdim=True), 1.0)
        return truncate_to_nucleus((wide / self.temperature).softmax(-1), self.top_p)

    def uniforms(self, active: Sequence[int], rows: int, count: int, device: torch.device) -> Tensor:
        """Numbers in [0, 1) for the active rows, 0 for the others: [B, count] float64."""
        drawn = torch.zeros(rows, count, dtype=torch.float64)
        if self.temperature > 0:
            for row in active:
                own = self.generators[row]
                drawn[row] = torch.rand(count, dtype=torch.float64, generator=own, device=own.device)
        return drawn.to(device)

    def draw(self, weights: Tensor, active: Sequence[int]) -> Tensor:
        """One token by the weights [B, n, V] of every position; of inactive rows, any. Returns: [B, n]."""
        rows, count, size = weights.shape
        sums = weights.double().cumsum(-1)
        level = self.uniforms(active, rows, count, weights.device)[..., None] * sums[..., -1:]
        return torch.searchsorted(sums, level, right=True).squeeze(-1).clamp(max=size - 1)


def truncate_to_nucleus(probs: Tensor, top_p: float) -> Tensor:
    """The fewest most probable tokens that together have `top_p` or more, renormalised. probs [..., V]."""
    if top_p >= 1:
        return probs
    ordered, order = probs.sort(-1, descending=True)
    kept = ordered.cumsum(-1) - ordered < top_p
    cut = torch.zeros_like(probs).scatter(-1, order, torch.where(kept, ordered, 0.0))
    return cut / cut.sum(-1, keepdim=True)


@dataclass(frozen=True)
class DraftProposal:
    """What was drafted, to be verified."""

    tokens: Tensor  # [B, n] int64
    probs: Tensor  # [B, n, V]: the distributions that the tokens were drawn from
    lengths: Tensor  # [B] int64: how many of a row's tokens are proposed


def propose_drafts(sampler: Sampler, logits: Tensor, active: Sequence[int], threshold: float) -> DraftProposal:
    """Draft one token per position from logits [B, n, V].

    A row proposes up to its first position whose most probable token has less than `threshold`. That does not look at
    the token drawn, so the drafted tokens follow `probs` exactly, as `verify` needs.
    """
    probs = sampler.distribution(logits)
    confident = logits.to(probs.dtype).softmax(-1).amax(-1) >= threshold
    return DraftProposal(sampler.draw(probs, active), probs, count_leading(confident))


def count_leading(flags: Tensor) -> Tensor:
    """How many flags are True before the first that is not: [B, n] bool -> [B] int64."""
    return flags.long().cumprod(1).sum(1)


def verify_proposal(
    sampler: Sampler, target: Tensor, proposal: DraftProposal, active: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Speculative sampling: what is accepted, with the one token behind it, follows `target` exactly.

    Draft i is accepted with probability min(1, p_i / q_i); behind the accepted ones comes a token drawn from the
    residual max(p - q, 0) where a draft was refused, from p where none was left.

    target: [B, n + 1, V], p_i of draft i, and of the token behind them all.
    Returns: accepted [B] int64, and the token behind [B] int64.
    """
    rows, count = proposal.tokens.shape
    p = target[:, :count].gather(-1, proposal.tokens[..., None]).squeeze(-1)
    q = proposal.probs.gather(-1, proposal.tokens[..., None]).squeeze(-1)
    kept = sampler.uniforms(active, rows, count, target.device) * q < p
    accepted = torch.minimum(count_leading(kept), proposal.lengths)
    return accepted, sampler.draw(residual_weights(target, proposal, accepted)[:, None], active).squeeze(1)


def residual_weights(target: Tensor, proposal: DraftProposal, accepted: Tensor) -> Tensor:
    """Weights [B, V] of the token behind the accepted ones: max(p - q, 0) where a draft was refused, p elsewhere."""
    rows = torch.arange(len(accepted), device=accepted.device)
    p = target[rows, accepted]
    if proposal.probs.shape[1] == 0:
        return p
    q = proposal.probs[rows, accepted.clamp(max=proposal.probs.shape[1] - 1)]
    refused = accepted < proposal.lengths
    rest = (p - q).clamp(min=0)
    # Where p and q differ by rounding alone nothing is left, and p itself is right.
    usable = refused & (rest.sum(-1) > 0)
    return torch.where(usable[:, None], rest, p)


def mix_logits(left: Tensor, right: Tensor, weight: float) -> Tensor:
    """Logits of (1 - weight) * softmax(left) + weight * softmax(right); `left` itself for weight 0. [..., V]."""
    if weight == 0:
        return left
    wide = torch.promote_types(left.dtype, torch.float32)
    both = (1 - weight) * left.to(wide).softmax(-1) + weight * right.to(wide).softmax(-1)
    return both.log()


def confident_places(confidence: Tensor, masked: Tensor, threshold: float) -> Tensor:
    """Masked places to commit: the most confident one, and all at `threshold` or above. [B, n] each."""
    best = most_confident(confidence, masked, masked.new_ones(len(masked), 1, dtype=torch.long))
    return masked & (best | (confidence >= threshold))


def most_confident(confidence: Tensor, masked: Tensor, count: Tensor) -> Tensor:
    """The `count` [B, 1] most confident masked places; of equals the leftmost. [B, n] bool."""
    order = confidence.masked_fill(~masked, -torch.inf).argsort(stable=True, dim=1, descending=True)
    return masked & (order.argsort(1) < count)


def even_quota(masks: Tensor, steps_left: Tensor) -> Tensor:
    """How many of `masks` to commit now, so that the steps left do equal work, the earlier ones what is over. Both
    [B, 1] int64.
    """
    steps = steps_left.clamp(min=1)
    return (masks + steps - 1) // steps
