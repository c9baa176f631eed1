"""The drafter's loss [paper sec. 3.3]: draw the drafts towards what the AR verifier accepts.

A block drafts n tokens behind its seed; the verifier judges each of them. Sums and counts, nothing is divided by the
batch here. Letters: N blocks, n drafted tokens of a block, R = N * n, W columns of the vocabulary on this rank,
C candidates of a position (twice top_k).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.loss.vocabulary import VocabularyShard, largest_token_ids, log_normalizer, logits_at, sample_token_ids
from nld_train.types import DraftDraws, DrafterTerms

DECAY = 0.5  # of lam with acceptance [paper sec. 3.3]
NOBODY = -1  # in place of a candidate that may not be one


@dataclass(frozen=True)
class CandidateTokens:
    """The union U of both models' top_k, each token once."""

    ids: Tensor  # [R, C] int64
    valid: Tensor  # [R, C] bool: False for the second of two equal ones


@dataclass(frozen=True)
class DraftVerdicts:
    """What the verifier makes of the drafts."""

    best: Tensor  # [N, n] int64: its own argmax, over the whole vocabulary
    accepted: Tensor  # [N] int64: drafts before the first that it rejects


def draw_drafts(logits: Tensor, draws: DraftDraws, cut: VocabularyShard) -> Tensor:
    """Drafted tokens [N, n] of the drafter's logits [R, W]: sampled at temperature 1, or the argmax, block by block."""
    shape = draws.draft.shape
    sampled = sample_token_ids(logits, draws.draft.flatten(), cut).view(shape)
    return torch.where(draws.greedy[:, None], largest_token_ids(logits, 1, cut).view(shape), sampled)


def judge_drafts(p: Tensor, q: Tensor, drafted: Tensor, draws: DraftDraws, cut: VocabularyShard) -> DraftVerdicts:
    """Judge drafted tokens [N, n] as decoding does, by the verifier's and the drafter's logits, [R, W] each.

    Greedy blocks accept the verifier's argmax; sampled ones accept a token with probability min(1, p / q) at
    temperature 1 (speculative sampling).
    """
    shape, tokens = drafted.shape, drafted.reshape(-1, 1)
    best = largest_token_ids(p, 1, cut).view(shape)
    log_ratio = logits_at(p.detach(), tokens, cut)[:, 0] - log_normalizer(p, cut)
    log_ratio = log_ratio - logits_at(q.detach(), tokens, cut)[:, 0] + log_normalizer(q, cut)
    by_chance = draws.accept < log_ratio.double().exp().view(shape)
    kept = torch.where(draws.greedy[:, None], drafted == best, by_chance)
    return DraftVerdicts(best, kept.long().cumprod(1).sum(1))


def union_candidates(p: Tensor, q: Tensor, top_k: int, forbidden: int, cut: VocabularyShard) -> CandidateTokens:
    """The union of the top_k of logits p and q, [R, W] each, without the token `forbidden`, which is never drafted."""
    both = torch.cat(
        [_without(largest_token_ids(logits, top_k + 1, cut), forbidden)[:, :top_k] for logits in (p, q)], 1
    )
    ids = both.sort(-1).values
    valid = ids != NOBODY
    valid[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    return CandidateTokens(ids, valid)


def _without(ids: Tensor, forbidden: int) -> Tensor:
    """Ids [R, C] with the forbidden one behind all others, as NOBODY."""
    late = (ids == forbidden).long().argsort(dim=1, stable=True)
    moved = ids.gather(1, late)
    return torch.where(moved == forbidden, NOBODY, moved)


@dataclass(frozen=True)
class DraftPositionTerms:
    """The loss of every drafted position, [R] each."""

    hybrid: Tensor  # lam * KL(p || q) + (1 - lam) * TV
    overlap: Tensor  # sum of min(p, q)
    cross_entropy: Tensor  # nats; 0 where not `counted`
    counted: Tensor  # bool: whether the verifier's argmax is among the candidates


def draft_position_terms(p: Tensor, q: Tensor, best: Tensor, chosen: CandidateTokens, tau: float) -> DraftPositionTerms:
    """Logits p (verifier) and q (drafter) of the candidates [R, C], best [R]: the verifier's argmax.

    Both are softmaxed at temperature tau over the candidates, the cross-entropy is that of q at temperature 1. The
    gradient goes through q alone; lam = exp(-0.5 * overlap) is a constant to it.
    """
    p = p.detach().masked_fill(~chosen.valid, -torch.inf)
    log_p, log_q = _log_softmax(p / tau, chosen.valid), _log_softmax(q / tau, chosen.valid)
    prob_p, prob_q = (log.exp() * chosen.valid for log in (log_p, log_q))
    divergence = (prob_p * (log_p - log_q)).sum(-1)
    variation = 0.5 * (prob_p - prob_q).abs().sum(-1)
    overlap = torch.minimum(prob_p, prob_q).sum(-1).detach()
    lam = torch.exp(-DECAY * overlap)
    is_best = (chosen.ids == best[:, None]) & chosen.valid
    cross_entropy = -torch.where(is_best, _log_softmax(q, chosen.valid), 0.0).sum(-1)
    return DraftPositionTerms(lam * divergence + (1 - lam) * variation, overlap, cross_entropy, is_best.any(-1))


def _log_softmax(logits: Tensor, valid: Tensor) -> Tensor:
    """log softmax over the valid places of [R, C]; 0 at the others, so that nothing multiplied by them is NaN."""
    return torch.where(valid, logits.masked_fill(~valid, -torch.inf).log_softmax(-1), 0.0)


def drafter_terms(
    p: Tensor, q: Tensor, verdicts: DraftVerdicts, top_k: int, tau: float, forbidden: int, cut: VocabularyShard
) -> DrafterTerms:
    """Logits p (verifier) and q (drafter), [R, W] of this rank, block by block. The same on every rank.

    Active are the accepted drafts of a block and the first rejected one. Each term is its mean over the active
    positions of a block, summed over the blocks; the cross-entropy's mean is over those whose argmax is a candidate,
    and a block without any adds 0.
    """
    chosen = union_candidates(p, q, top_k, forbidden, cut)
    ids = chosen.ids.clamp(min=0)
    p_logits, q_logits = logits_at(p.detach(), ids, cut), logits_at(q, ids, cut)
    found = draft_position_terms(p_logits, q_logits, verdicts.best.flatten(), chosen, tau)
    shape = verdicts.best.shape
    places = torch.arange(shape[1], device=p.device)
    active = places <= verdicts.accepted[:, None]
    return DrafterTerms(
        hybrid_sum=_block_means(found.hybrid.view(shape), active),
        argmax_sum=_block_means(found.cross_entropy.view(shape), active & found.counted.view(shape)),
        overlap_sum=_block_means(found.overlap.view(shape), active),
        kept_by_place=(places < verdicts.accepted[:, None]).sum(0).float(),
        blocks=torch.full((), float(shape[0]), device=p.device),  # made there: a copy would wait for the device
    )


def _block_means(values: Tensor, active: Tensor) -> Tensor:
    """Sum over the blocks of each one's mean over its active places; both [N, n]. Scalar."""
    return ((values * active).sum(1) / active.sum(1).clamp(min=1)).sum()
