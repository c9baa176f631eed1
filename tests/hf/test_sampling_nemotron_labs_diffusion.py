"""Drawing, the speculative sampling rule against the exact distribution, and the schedules of diffusion."""

import pytest
import torch
from scipy.stats import chisquare
from torch import Generator, Tensor

from nld_train.hf.sampling_nemotron_labs_diffusion import (
    DraftProposal,
    Sampler,
    confident_places,
    even_quota,
    mix_logits,
    most_confident,
    propose_drafts,
    residual_weights,
    row_generators,
    truncate_to_nucleus,
    verify_proposal,
)

DRAWS = 20_000
P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def sampler(rows: int, temperature: float = 1.0, top_p: float = 1.0) -> Sampler:
    return Sampler(temperature, top_p, Generator().manual_seed(0), rows)


def p_value(tokens: Tensor, probs: Tensor) -> float:
    counts = torch.bincount(tokens, minlength=len(probs)).double()
    return chisquare(counts.numpy(), (probs * counts.sum()).numpy()).pvalue


def test_draws_follow_their_weights():
    tokens = sampler(DRAWS).draw(7 * P.expand(DRAWS, 1, -1), range(DRAWS)).flatten()
    assert p_value(tokens, P) > 0.001
    assert p_value(tokens, Q) < 1e-9


def test_temperature_0_takes_the_most_probable_token_and_no_random_number():
    before = torch.get_rng_state()
    greedy = Sampler(0.0, 1.0, None, 2)
    logits = torch.tensor([[[0.1, 3.0, 2.0]], [[5.0, 4.0, 5.0]]])
    assert greedy.distribution(logits).tolist() == [[[0, 1, 0]], [[1, 0, 0]]]
    assert greedy.draw(greedy.distribution(logits), [0, 1]).tolist() == [[1], [0]]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_token_without_weight_is_never_drawn():
    weights = torch.tensor([0.0, 1.0, 0.0, 1e-300, 0.0]).double().expand(1000, 1, -1)
    assert set(sampler(1000).draw(weights, range(1000)).flatten().tolist()) == {1}


def test_the_temperature_divides_the_logits():
    logits = torch.tensor([1.0, 2.0, 4.0])
    assert torch.allclose(sampler(1, 0.5).distribution(logits), torch.tensor([2.0, 4.0, 8.0]).softmax(-1))


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.5, [1]), (0.51, [1, 2]), (0.8, [1, 2]), (0.81, [0, 1, 2]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    probs = torch.tensor([0.15, 0.5, 0.3, 0.05], dtype=torch.float64)
    cut = truncate_to_nucleus(probs, top_p)
    assert cut.nonzero().flatten().tolist() == kept
    assert torch.allclose(cut[kept], probs[kept] / probs[kept].sum())


def test_a_row_draws_the_same_numbers_whatever_stands_beside_it():
    seeds = [11, 12, 13]
    together = Sampler(1.0, 1.0, [Generator().manual_seed(seed) for seed in seeds], 3)
    first, second = together.uniforms([0, 1, 2], 3, 2, P.device), together.uniforms([2], 3, 4, P.device)
    alone = Sampler(1.0, 1.0, [Generator().manual_seed(13)], 1)
    assert torch.equal(first[2], alone.uniforms([0], 1, 2, P.device)[0])
    assert torch.equal(second[2], alone.uniforms([0], 1, 4, P.device)[0])
    assert (second[:2] == 0).all()


def test_one_generator_seeds_different_rows_differently_and_reproducibly():
    states = [[own.initial_seed() for own in row_generators(Generator().manual_seed(5), 3)] for _ in range(2)]
    assert states[0] == states[1] and len(set(states[0])) == 3
    torch.manual_seed(5)
    first = row_generators(None, 1)[0].initial_seed()
    torch.manual_seed(5)
    assert row_generators(None, 1)[0].initial_seed() == first


def one_draft() -> tuple[Sampler, Tensor, DraftProposal]:
    """DRAWS rows with one draft each from Q, to be verified against P; behind it Q reversed is right."""
    draws = sampler(DRAWS)
    tokens = draws.draw(Q.expand(DRAWS, 1, -1), range(DRAWS))
    target = torch.stack([P, Q.flip(0)]).expand(DRAWS, 2, -1)
    return draws, target, DraftProposal(tokens, Q.expand(DRAWS, 1, -1), torch.ones(DRAWS, dtype=torch.long))


def test_speculative_sampling_follows_the_target_exactly():
    draws, target, proposal = one_draft()
    accepted, behind = verify_proposal(draws, target, proposal, range(DRAWS))
    first = torch.where(accepted == 1, proposal.tokens[:, 0], behind)
    assert p_value(first, P) > 0.001
    assert p_value(behind[accepted == 1], Q.flip(0)) > 0.001
    assert accepted.double().mean().item() == pytest.approx(torch.minimum(P, Q).sum().item(), abs=0.015)


def test_without_the_residual_it_would_not():
    draws, target, proposal = one_draft()
    accepted, _ = verify_proposal(draws, target, proposal, range(DRAWS))
    uncorrected = draws.draw(target[:, :1], range(DRAWS))[:, 0]
    assert p_value(torch.where(accepted == 1, proposal.tokens[:, 0], uncorrected), P) < 1e-9


def test_the_residual_is_what_the_draft_leaves_and_the_target_where_nothing_was_refused():
    target = torch.stack([P, P, P]).expand(3, 3, -1)
    proposal = DraftProposal(torch.zeros(3, 2, dtype=torch.long), Q.expand(3, 2, -1), torch.tensor([2, 2, 1]))
    weights = residual_weights(target, proposal, torch.tensor([0, 2, 1]))
    assert torch.equal(weights, torch.stack([(P - Q).clamp(min=0), P, P]))
    same = DraftProposal(proposal.tokens, P.expand(3, 2, -1), proposal.lengths)
    assert torch.equal(residual_weights(target, same, torch.zeros(3, dtype=torch.long)), P.expand(3, -1))


def test_greedy_verification_accepts_the_matching_prefix_and_corrects_the_next_token():
    eye = torch.eye(5)
    target, drafted = eye[torch.tensor([[1, 2, 3, 4]] * 3)], torch.tensor([[1, 2, 3], [1, 0, 3], [0, 2, 3]])
    proposal = DraftProposal(drafted, eye[drafted], torch.tensor([3, 3, 3]))
    accepted, behind = verify_proposal(Sampler(0.0, 1.0, None, 3), target, proposal, [0, 1, 2])
    assert accepted.tolist() == [3, 1, 0] and behind.tolist() == [4, 2, 1]


def test_a_draft_stops_at_the_first_position_that_is_not_sure_enough():
    sure, unsure = [8.0, 0.0, 0.0], [0.2, 0.1, 0.0]
    logits = torch.tensor([[sure, unsure, sure], [sure, sure, sure], [unsure, sure, sure]])
    greedy = Sampler(0.0, 1.0, None, 3)
    assert propose_drafts(greedy, logits, [0, 1, 2], threshold=0.9).lengths.tolist() == [1, 3, 0]
    assert propose_drafts(greedy, logits, [0, 1, 2], threshold=0.0).lengths.tolist() == [3, 3, 3]


def test_a_short_proposal_is_not_accepted_beyond_its_length():
    eye = torch.eye(4)
    target, drafted = eye[torch.tensor([[1, 2, 3]])], torch.tensor([[1, 2]])
    proposal = DraftProposal(drafted, eye[drafted], torch.tensor([1]))
    accepted, behind = verify_proposal(Sampler(0.0, 1.0, None, 1), target, proposal, [0])
    assert (accepted.tolist(), behind.tolist()) == ([1], [2])


def test_a_mixture_is_one_of_probabilities_and_its_ends_are_the_two():
    left, right = torch.randn(2, 3, 6, generator=Generator().manual_seed(0), dtype=torch.float64)
    both = 0.7 * left.softmax(-1) + 0.3 * right.softmax(-1)
    assert torch.allclose(mix_logits(left, right, 0.3).softmax(-1), both)
    assert mix_logits(left, right, 0) is left
    assert torch.allclose(mix_logits(left, right, 1).softmax(-1), right.softmax(-1))


CONFIDENCE = torch.tensor([[0.2, 0.95, 0.9, 0.99, 0.3], [0.5, 0.1, 0.4, 0.5, 0.2]])
MASKED = torch.tensor([[1, 1, 1, 0, 1], [1, 1, 1, 1, 0]]).bool()


def test_the_threshold_commits_what_reaches_it_and_always_the_best():
    assert confident_places(CONFIDENCE, MASKED, 0.9).int().tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert confident_places(CONFIDENCE, MASKED, 1.0).sum(1).tolist() == [1, 1]
    assert torch.equal(confident_places(CONFIDENCE, MASKED, 0.0), MASKED)
    assert not confident_places(CONFIDENCE, torch.zeros_like(MASKED), 0.0).any()


def test_a_count_commits_the_most_confident_masked_places():
    count = torch.tensor([[2], [3]])
    assert most_confident(CONFIDENCE, MASKED, count).int().tolist() == [[0, 1, 1, 0, 0], [1, 0, 1, 1, 0]]
    assert torch.equal(most_confident(CONFIDENCE, MASKED, torch.full((2, 1), 9)), MASKED)


@pytest.mark.parametrize(
    ("masks", "steps", "shares"),
    [(7, 3, [3, 2, 2]), (31, 32, [1] * 31), (8, 4, [2] * 4), (3, 1, [3]), (5, 4, [2, 1, 1, 1])],
)
def test_the_even_quota_spreads_the_masks_over_the_steps(masks, steps, shares):
    made, left = [], torch.tensor([[masks]])
    while left.item():
        made.append(even_quota(left, torch.tensor([[steps - len(made)]])).item())
        left = left - made[-1]
    assert made == shares
