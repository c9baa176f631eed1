"""The drafter's loss [paper sec. 3.3]: it draws the drafts towards what the AR verifier accepts.

A block drafts n tokens behind its seed, and the verifier judges each of them. The results are sums and counts: nothing
is divided by the batch here. Letters: N blocks; n drafted tokens of a block; R = N * n; W columns of the vocabulary on
this rank; C = 2 * top_k candidates of a position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.config import DrafterConfig
from nld_train.loss.drafter_choices import LOSSES, PlaceTerms, expected_drafts, weighted_means
from nld_train.loss.vocabulary import VocabularyShard, largest_token_ids, log_normalizer, logits_at, sample_token_ids
from nld_train.types import DraftDraws, DrafterTerms

DECAY = 0.5  # of lam with acceptance [paper sec. 3.3]
NO_TOKEN = -1  # stands where a candidate was taken away


@dataclass(frozen=True)
class CandidateTokens:
    """The union U_j of the top_k tokens of both models at every position j, each token once."""

    ids: Tensor  # [R, C] int64
    valid: Tensor  # [R, C] bool: False for the second of two equal ones


@dataclass(frozen=True)
class DraftVerdicts:
    """The verifier's judgement of the drafts."""

    best: Tensor  # [N, n] int64: the verifier's argmax over the whole vocabulary
    accepted: Tensor  # [N] int64: how many drafts stand before the first rejected one


def draw_drafts(logits: Tensor, draws: DraftDraws, shard: VocabularyShard) -> Tensor:
    """Draft tokens [N, n] from the drafter's logits [R, W]: each block by sampling at temperature 1, or by argmax."""
    shape = draws.draft.shape
    sampled = sample_token_ids(logits, draws.draft.flatten(), shard).view(shape)
    return torch.where(draws.greedy[:, None], largest_token_ids(logits, 1, shard).view(shape), sampled)


def judge_drafts(p: Tensor, q: Tensor, drafted: Tensor, draws: DraftDraws, shard: VocabularyShard) -> DraftVerdicts:
    """Judge drafted tokens [N, n] as decoding does, by the verifier's and the drafter's logits, [R, W] each.

    Greedy blocks accept the verifier's argmax; sampled ones accept a token with probability min(1, p / q) at
    temperature 1 (speculative sampling).
    """
    shape, tokens = drafted.shape, drafted.reshape(-1, 1)
    # 1. Greedy blocks: the draft is the verifier's argmax.
    best = largest_token_ids(p, 1, shard).view(shape)
    # 2. Sampled blocks: the drafted token stands with probability min(1, p / q).
    log_ratio = logits_at(p.detach(), tokens, shard)[:, 0] - log_normalizer(p, shard)
    log_ratio = log_ratio - logits_at(q.detach(), tokens, shard)[:, 0] + log_normalizer(q, shard)
    by_chance = draws.accept < log_ratio.double().exp().view(shape)
    # 3. A draft counts where it and all before it are accepted.
    return DraftVerdicts(best, accepted_drafts(torch.where(draws.greedy[:, None], drafted == best, by_chance)))


def accepted_drafts(right: Tensor) -> Tensor:
    """How many drafts of each block stand before its first wrong one: right [N, n] bool -> [N] int64."""
    return right.long().cumprod(1).sum(1)


def count_kept_by_place(accepted: Tensor, places: int) -> Tensor:
    """Blocks whose drafts up to each of n = `places` places were all accepted: accepted [N] -> [n] float32."""
    return (torch.arange(places, device=accepted.device) < accepted[:, None]).sum(0).float()


def greedy_draft_ids(logits: Tensor, forbidden: int, shard: VocabularyShard) -> Tensor:
    """What decoding drafts by argmax from logits [R, W], which are changed in place: [R] int64."""
    forbid_token(logits, forbidden, shard)
    return largest_token_ids(logits, 1, shard)[:, 0]


def forbid_token(logits: Tensor, token: int, shard: VocabularyShard) -> None:
    """Change logits [R, W] in place, so that the token is never drafted; decoding never drafts the mask."""
    column = token - shard.offset
    if 0 <= column < logits.shape[-1]:
        logits[:, column] = -torch.inf


def union_candidates(p: Tensor, q: Tensor, top_k: int, forbidden: int, shard: VocabularyShard) -> CandidateTokens:
    """The union of the top_k of logits p and q, [R, W] each, without the token `forbidden`, which is never drafted.

    Each model offers one token more than top_k, so that top_k are left where the forbidden one was among them.
    """
    both = torch.cat(
        [_without(largest_token_ids(logits, top_k + 1, shard), forbidden)[:, :top_k] for logits in (p, q)], 1
    )
    ids = both.sort(-1).values
    valid = ids != NO_TOKEN
    valid[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    return CandidateTokens(ids, valid)


def _without(ids: Tensor, forbidden: int) -> Tensor:
    """Ids [R, C] in their order, but for the forbidden one: it goes to the end of its row, as NO_TOKEN."""
    late = (ids == forbidden).long().argsort(dim=1, stable=True)
    moved = ids.gather(1, late)
    return torch.where(moved == forbidden, NO_TOKEN, moved)


@dataclass(frozen=True)
class DraftPositionTerms:
    """The loss of every drafted position, [R] each."""

    hybrid: Tensor  # lam * KL(p || q) + (1 - lam) * TV
    overlap: Tensor  # sum of min(p, q)
    cross_entropy: Tensor  # nats; 0 where not `counted`
    counted: Tensor  # bool: whether the verifier's argmax is among the candidates
    acceptance: Tensor  # sum of min(p, q) at temperature 1: how likely speculative sampling accepts a draft there


def draft_position_terms(p: Tensor, q: Tensor, best: Tensor, chosen: CandidateTokens, tau: float) -> DraftPositionTerms:
    """The loss of every position, from the candidates' logits p (verifier) and q (drafter), [R, C] each, and the
    verifier's argmax, best [R].

    With P_j = softmax(p_j / tau) and Q_j = softmax(q_j / tau) over the candidates U_j:
    1. overlap_j = SUM_u min(P_j(u), Q_j(u)) and lam_j = exp(-0.5 * overlap_j), both constants to the gradient;
    2. hybrid_j = lam_j * KL(P_j || Q_j) + (1 - lam_j) * TV(P_j, Q_j), with TV = 0.5 * SUM_u |P_j(u) - Q_j(u)|;
    3. cross_entropy_j = -log softmax(q_j)(best_j), at temperature 1; counted where best_j is in U_j;
    4. acceptance_j = SUM_u min(softmax(p_j)(u), softmax(q_j)(u)), at temperature 1.
    The gradient goes through q alone.
    """
    p = p.detach().masked_fill(~chosen.valid, -torch.inf)
    log_p, log_q = _log_softmax(p / tau, chosen.valid), _log_softmax(q / tau, chosen.valid)
    prob_p, prob_q = (log.exp() * chosen.valid for log in (log_p, log_q))
    divergence = (prob_p * (log_p - log_q)).sum(-1)
    variation = 0.5 * (prob_p - prob_q).abs().sum(-1)
    overlap = torch.minimum(prob_p, prob_q).sum(-1).detach()
    lam = torch.exp(-DECAY * overlap)
    is_best = (chosen.ids == best[:, None]) & chosen.valid
    log_q = _log_softmax(q, chosen.valid)
    cross_entropy = -torch.where(is_best, log_q, 0.0).sum(-1)
    drawn_p = _log_softmax(p, chosen.valid).exp() * chosen.valid
    acceptance = torch.minimum(drawn_p, log_q.exp() * chosen.valid).sum(-1)
    hybrid = lam * divergence + (1 - lam) * variation
    return DraftPositionTerms(hybrid, overlap, cross_entropy, is_best.any(-1), acceptance)


def _log_softmax(logits: Tensor, valid: Tensor) -> Tensor:
    """log softmax of logits [R, C] over the valid places; 0 at the others, so that no product with it is NaN."""
    return torch.where(valid, logits.masked_fill(~valid, -torch.inf).log_softmax(-1), 0.0)


def drafter_terms(
    p: Tensor, q: Tensor, verdicts: DraftVerdicts, drafter: DrafterConfig, forbidden: int, shard: VocabularyShard
) -> DrafterTerms:
    """The terms of N blocks, from logits p (verifier) and q (drafter), [R, W] of this rank; the same on every rank.

    Active are the accepted drafts of a block and the first rejected one. What is shown is the same whatever loss is
    chosen: each term is its mean over the active positions of a block, summed over the blocks. The mean of the
    cross-entropy is taken over those positions whose argmax is a candidate, and a block without any adds 0.
    """
    # 1. The candidates of every position, and both models' logits of them.
    chosen = union_candidates(p, q, drafter.top_k, forbidden, shard)
    ids = chosen.ids.clamp(min=0)
    p_logits, q_logits = logits_at(p.detach(), ids, shard), logits_at(q, ids, shard)
    # 2. The loss of every position.
    found = draft_position_terms(p_logits, q_logits, verdicts.best.flatten(), chosen, drafter.tau)
    # 3. The chosen loss of each block, and means over its active positions, summed over the blocks.
    shape = verdicts.best.shape
    terms = PlaceTerms(
        hybrid=found.hybrid.view(shape),
        cross_entropy=found.cross_entropy.view(shape),
        counted=found.counted.view(shape),
        acceptance=found.acceptance.view(shape),
        accepted=verdicts.accepted,
    )
    active = terms.active
    return DrafterTerms(
        loss_sum=LOSSES[drafter.loss](terms, drafter),
        hybrid_sum=weighted_means(terms.hybrid, active),
        argmax_sum=weighted_means(terms.cross_entropy, active & terms.counted),
        overlap_sum=weighted_means(found.overlap.view(shape), active),
        expected_sum=expected_drafts(terms.acceptance.detach()).sum(),
        kept_by_place=count_kept_by_place(verdicts.accepted, shape[1]),
        blocks=torch.full((), float(shape[0]), device=p.device),  # made there: a copy would wait for the device
    )
