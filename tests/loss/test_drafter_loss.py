"""The drafter's loss against its formulas, written out over the full vocabulary in float64."""

import math

import pytest
import torch

from nld_train.config import DrafterConfig
from nld_train.loss.drafter_loss import (
    CandidateTokens,
    DraftVerdicts,
    accepted_drafts,
    count_kept_by_place,
    draft_position_terms,
    drafter_terms,
    draw_drafts,
    greedy_draft_ids,
    judge_drafts,
    union_candidates,
)
from nld_train.loss.objective import KEPT, decoding_figures, drafter_numerator, drafter_pairs
from nld_train.loss.vocabulary import VocabularyShard
from nld_train.types import DraftDraws, DrafterTerms

BLOCKS, PLACES, VOCABULARY, TOP, MASK, TAU = 6, 5, 80, 9, 3, 3.0
WHOLE = VocabularyShard()
SETTINGS = DrafterConfig(top_k=TOP, tau=TAU)


def logits(seed: int, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(BLOCKS * PLACES, VOCABULARY, dtype=torch.float64, generator=generator)


def draws(seed: int, greedy: list[bool] | None = None) -> DraftDraws:
    generator = torch.Generator().manual_seed(seed)
    draft, accept = torch.rand(2, BLOCKS, PLACES, dtype=torch.float64, generator=generator)
    flags = torch.zeros(BLOCKS, dtype=torch.bool) if greedy is None else torch.tensor(greedy)
    return DraftDraws(draft, accept, flags)


def verdicts(p: torch.Tensor, accepted: list[int]) -> DraftVerdicts:
    return DraftVerdicts(p.argmax(-1).view(BLOCKS, PLACES), torch.tensor(accepted))


ACCEPTED = [0, 1, 2, 3, 4, 5]


def written_out(p: torch.Tensor, q: torch.Tensor, accepted: list[int]) -> tuple[float, float]:
    """Design section 3, "Drafter", position by position with plain numbers: (hybrid, cross-entropy) summed over blocks.

    The mask token, which decoding never drafts, is out of both supports.
    """
    hybrid_sum = argmax_sum = 0.0
    for block in range(BLOCKS):
        hybrids, entropies = [], []
        for place in range(min(accepted[block] + 1, PLACES)):
            row = block * PLACES + place
            pl, ql = p[row].tolist(), q[row].tolist()
            tokens = [token for token in range(VOCABULARY) if token != MASK]
            top_p = sorted(tokens, key=lambda token: -pl[token])[:TOP]
            top_q = sorted(tokens, key=lambda token: -ql[token])[:TOP]
            union = sorted(set(top_p) | set(top_q))

            def softmax(values: list[float], tau: float, tokens: list[int] = union) -> dict[int, float]:
                total = math.fsum(math.exp(values[token] / tau) for token in tokens)
                return {token: math.exp(values[token] / tau) / total for token in tokens}

            pp, qq = softmax(pl, TAU), softmax(ql, TAU)
            acceptance = math.fsum(min(pp[token], qq[token]) for token in union)
            lam = math.exp(-0.5 * acceptance)
            divergence = math.fsum(pp[token] * math.log(pp[token] / qq[token]) for token in union)
            variation = 0.5 * math.fsum(abs(pp[token] - qq[token]) for token in union)
            hybrids.append(lam * divergence + (1 - lam) * variation)
            best = max(range(VOCABULARY), key=lambda token: pl[token])
            if best in union:
                entropies.append(-math.log(softmax(ql, 1.0)[best]))
        hybrid_sum += math.fsum(hybrids) / len(hybrids)
        argmax_sum += math.fsum(entropies) / len(entropies) if entropies else 0.0
    return hybrid_sum, argmax_sum


def terms(p: torch.Tensor, q: torch.Tensor, accepted: list[int] | None = None) -> DrafterTerms:
    return drafter_terms(p, q, verdicts(p, accepted or ACCEPTED), SETTINGS, MASK, WHOLE)


@pytest.mark.parametrize("seed", range(4))
def test_terms_equal_the_formulas_over_the_full_vocabulary(seed: int) -> None:
    p, q = logits(2 * seed), logits(2 * seed + 1)
    p[::3, MASK] = 50.0  # here the verifier's argmax is no candidate
    found, expected = terms(p, q), written_out(p, q, ACCEPTED)
    assert (found.hybrid_sum.item(), found.argmax_sum.item()) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert found.blocks == BLOCKS
    assert found.kept_by_place.tolist() == [5, 4, 3, 2, 1]


def test_a_small_vocabulary_is_its_own_support() -> None:
    """Fewer tokens than top_k: the union is everything but the mask."""
    p, q = logits(1)[:, :6], logits(2)[:, :6]
    chosen = union_candidates(p, q, 200, MASK, WHOLE)
    assert sorted(chosen.ids[0][chosen.valid[0]].tolist()) == [0, 1, 2, 4, 5]
    kept = [0, 1, 2, 4, 5]
    found = drafter_terms(p, q, verdicts(p, [0] * BLOCKS), DrafterConfig(top_k=200, tau=TAU), MASK, WHOLE)
    first_p, first_q = (x.view(BLOCKS, PLACES, 6)[:, 0][:, kept] for x in (p, q))
    pp, qq = (first_p / TAU).softmax(-1), (first_q / TAU).softmax(-1)
    lam = torch.exp(-0.5 * torch.minimum(pp, qq).sum(-1))
    direct = lam * (pp * (pp / qq).log()).sum(-1) + (1 - lam) * 0.5 * (pp - qq).abs().sum(-1)
    assert found.hybrid_sum.item() == pytest.approx(direct.sum().item(), rel=1e-12)


def test_gradient_flows_only_through_the_drafter_and_equals_that_of_the_formula() -> None:
    p, q = logits(5).requires_grad_(), logits(6).requires_grad_()
    found = terms(p, q)
    (found.hybrid_sum + found.argmax_sum).backward()
    assert p.grad is None
    gradient, step = q.grad, 1e-6
    frozen = overlap_constant(p.detach(), q.detach())
    for row, token in ((0, int(p[0].argmax())), (6, int(q[6].argmax())), (29, int(p[29].argmax()))):
        moved = q.detach().clone()
        moved[row, token] += step
        high = frozen(moved)
        moved[row, token] -= 2 * step
        assert gradient[row, token].item() == pytest.approx((high - frozen(moved)) / (2 * step), rel=1e-5)


def overlap_constant(p: torch.Tensor, q: torch.Tensor):
    """The loss as a function of q with lam held at its value for `q`: what stopgrad means."""
    chosen = union_candidates(p, q, TOP, MASK, WHOLE)
    ids = chosen.ids.clamp(min=0)

    def probabilities(of: torch.Tensor, tau: float) -> torch.Tensor:
        return (of.gather(1, ids).masked_fill(~chosen.valid, -torch.inf) / tau).softmax(-1)

    pp = probabilities(p, TAU)
    lam = torch.exp(-0.5 * torch.minimum(pp, probabilities(q, TAU)).sum(-1))
    active = torch.arange(PLACES) <= torch.tensor(ACCEPTED)[:, None]

    def loss(at: torch.Tensor) -> float:
        qq = probabilities(at, TAU)
        divergence = torch.where(chosen.valid, pp * (pp / qq).log(), 0.0).sum(-1)
        hybrid = lam * divergence + (1 - lam) * 0.5 * (pp - qq).abs().sum(-1)
        hit = (ids == p.argmax(-1)[:, None]) & chosen.valid
        entropy = -torch.where(hit, probabilities(at, 1.0).log(), 0.0).sum(-1)
        per_block = ((hybrid + entropy).view(BLOCKS, PLACES) * active).sum(1) / active.sum(1)
        return per_block.sum().item()

    return loss


def test_places_after_the_first_rejection_contribute_nothing() -> None:
    p, q, accepted = logits(7), logits(8), [0, 1, 2, 0, 1, 2]
    before = terms(p, q, accepted)
    beyond = (torch.arange(PLACES) > torch.tensor(accepted)[:, None]).flatten()
    p[beyond], q[beyond] = logits(9)[beyond], logits(10)[beyond]
    q.requires_grad_()
    after = terms(p, q, accepted)
    # Only the expected length looks at all places.
    for name, value in vars(before).items():
        assert torch.equal(vars(after)[name], value) == (name != "expected_sum"), name
    (after.hybrid_sum + after.argmax_sum).backward()
    assert torch.equal(q.grad.abs().sum(-1) > 0, ~beyond)


def test_an_argmax_outside_the_candidates_is_dropped_from_numerator_and_denominator() -> None:
    p, q = logits(11), logits(12)
    p[0, MASK] = p[6, MASK] = 50.0  # place 0 of block 0, place 1 of block 1
    accepted = [0, 1, 0, 0, 0, 0]
    found = terms(p, q, accepted)
    outside = torch.ones(BLOCKS * PLACES, dtype=torch.bool)
    outside[[0, 6]] = False
    chosen = union_candidates(p, q, TOP, MASK, WHOLE)
    each = draft_position_terms(
        p.gather(1, chosen.ids.clamp(min=0)), q.gather(1, chosen.ids.clamp(min=0)), p.argmax(-1), chosen, TAU
    )
    assert torch.equal(each.counted, outside)
    # Block 0 has nothing left; of block 1 place 0 alone is divided by.
    kept = each.cross_entropy[[5, 10, 15, 20, 25]].sum()
    assert found.argmax_sum.item() == pytest.approx(kept.item(), rel=1e-12)


def test_candidates_hold_each_token_of_both_supports_once() -> None:
    p, q = logits(13), logits(14)
    chosen = union_candidates(p, q, TOP, MASK, WHOLE)
    for row in range(BLOCKS * PLACES):
        ids = chosen.ids[row][chosen.valid[row]].tolist()
        order_p, order_q = ([t for t in x[row].argsort(descending=True).tolist() if t != MASK][:TOP] for x in (p, q))
        assert sorted(set(order_p) | set(order_q)) == sorted(ids)


def test_equal_models_have_no_distance() -> None:
    p = logits(15)
    found = terms(p, p.clone())
    assert found.hybrid_sum.item() == pytest.approx(0, abs=1e-12)
    assert found.overlap_sum.item() == pytest.approx(BLOCKS)


def test_greedy_blocks_draft_the_argmax_and_sampled_ones_draw() -> None:
    q, half = logits(16, spread=0.5), [True, False] * 3
    drafted = draw_drafts(q, draws(1, half), WHOLE)
    best = q.argmax(-1).view(BLOCKS, PLACES)
    assert torch.equal(drafted[::2], best[::2])
    assert (drafted[1::2] != best[1::2]).any()
    assert torch.equal(drafted, draw_drafts(q, draws(1, half), WHOLE))


def test_greedy_blocks_are_accepted_up_to_the_first_that_is_not_the_verifiers_argmax() -> None:
    p, greedy = logits(17), [True] * BLOCKS
    drafted = p.argmax(-1).view(BLOCKS, PLACES).clone()
    for block in range(BLOCKS):
        if block < PLACES:
            drafted[block, block] = (drafted[block, block] + 1) % VOCABULARY
    assert judge_drafts(p, logits(18), drafted, draws(2, greedy), WHOLE).accepted.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_joint_stage_drafts_and_judges_as_the_drafters_evaluation_does() -> None:
    """Without its random numbers and its distances: the same drafts, never the mask, the same accepted lengths."""
    p, q, greedy = logits(30), logits(31), draws(4, [True] * BLOCKS)
    q[::4, MASK] = 50.0
    p[: 2 * PLACES] = q[: 2 * PLACES]
    drafted = greedy_draft_ids(q, MASK, WHOLE).view(BLOCKS, PLACES)
    assert torch.equal(drafted, draw_drafts(q, greedy, WHOLE)) and not (drafted == MASK).any()
    found = judge_drafts(p, q, drafted, greedy, WHOLE)
    accepted = accepted_drafts(drafted == p.argmax(-1).view(BLOCKS, PLACES))
    assert torch.equal(accepted, found.accepted) and len(set(accepted.tolist())) > 1
    shown = {name: pair[0] / pair[1] for name, pair in drafter_pairs(terms(p, q, accepted.tolist())).items()}
    figures = decoding_figures(count_kept_by_place(accepted, PLACES), torch.tensor(float(BLOCKS)))
    assert {name: figures[name] for name in shown if name in figures} == {
        name: value for name, value in shown.items() if name == "accepted length" or name.startswith(KEPT)
    }


def test_two_forwards_add_the_accepted_drafts_and_a_token_of_the_verifiers() -> None:
    kept = count_kept_by_place(torch.tensor([0, 3, 1, 0]), 3)
    assert kept.tolist() == [2, 1, 1]
    figures = {name: value.item() for name, value in decoding_figures(kept, torch.tensor(4.0)).items()}
    places = {f"{KEPT}1": 0.5, f"{KEPT}2": 0.25, f"{KEPT}3": 0.25}
    assert figures == {"accepted length": 2.0, "tokens per forward": 1.0, **places}


def test_sampled_blocks_are_accepted_with_the_ratio_of_the_probabilities() -> None:
    p, q = logits(19), logits(20)
    chance = draws(3)
    drafted = draw_drafts(q, chance, WHOLE)
    ratio = (p.softmax(-1) / q.softmax(-1)).gather(1, drafted.flatten()[:, None]).view(BLOCKS, PLACES)
    kept = (chance.accept < ratio).long().cumprod(1).sum(1)
    assert torch.equal(judge_drafts(p, q, drafted, chance, WHOLE).accepted, kept)
    assert 0 < kept.sum() < BLOCKS * PLACES


def test_candidates_that_do_not_count_have_no_gradient() -> None:
    ids = torch.tensor([[4, 4, 7]])
    chosen = CandidateTokens(ids, torch.tensor([[True, False, True]]))
    q = torch.tensor([[0.3, 9.0, 0.1]], dtype=torch.float64, requires_grad=True)
    found = draft_position_terms(torch.zeros(1, 3, dtype=torch.float64), q, torch.tensor([7]), chosen, TAU)
    (found.hybrid + found.cross_entropy).sum().backward()
    assert q.grad[0, 1] == 0 and (q.grad[0, [0, 2]] != 0).all()


def test_the_figures_of_a_step_add_up_over_micro_batches() -> None:
    """Sums and counts of two halves are those of the whole; the objective divides by the blocks alone."""
    p, q = logits(21), logits(22)
    half = PLACES * BLOCKS // 2
    parts = [
        drafter_terms(
            p[rows], q[rows], DraftVerdicts(p[rows].argmax(-1).view(-1, PLACES), counts), SETTINGS, MASK, WHOLE
        )
        for rows, counts in (
            (slice(0, half), torch.tensor(ACCEPTED[:3])),
            (slice(half, None), torch.tensor(ACCEPTED[3:])),
        )
    ]
    whole = drafter_pairs(terms(p, q))
    for name, (total, count) in whole.items():
        halves = [drafter_pairs(part)[name] for part in parts]
        assert sum(pair[0] for pair in halves).item() == pytest.approx(total.item(), rel=1e-12)
        assert sum(pair[1] for pair in halves) == count == BLOCKS
    assert drafter_numerator(terms(p, q)) == whole["hybrid loss"][0] + whole["argmax loss"][0]
    assert whole["accepted length"][0] / BLOCKS == 1 + sum(ACCEPTED) / BLOCKS
    assert [whole[f"{KEPT}{place}"][0].item() for place in (1, 5)] == [5, 1]
