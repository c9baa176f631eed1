import pytest
import torch

from nld_train.loss.cross_entropy import cross_entropy
from nld_train.loss.terms import loss_terms

PROMPT, LAST = 10, 19  # of 24 tokens: 0-9 prompt, 10-19 answer (19 its end token), 20-24 padding


@pytest.fixture
def answer(rows):
    place = torch.arange(25)
    return [type(row)(row.index, row.tokens, (place >= PROMPT) & (place <= LAST)) for row in rows]


def test_sums_are_weighted_and_counts_are_carried(rows, settings, batches):
    (batch,) = batches(rows, settings(), 8)
    ar = torch.rand(batch.ar_positions.shape, dtype=torch.float64)
    diffusion = torch.rand(batch.diffusion_positions.shape, dtype=torch.float64)
    found = loss_terms(ar, diffusion, batch)
    torch.testing.assert_close(found.ar_sum, ar.sum())
    expected = sum(x * w for x, w in zip(diffusion.tolist(), batch.diffusion_weights.tolist(), strict=True))
    assert found.diffusion_sum.item() == pytest.approx(expected, rel=1e-12)
    assert found.denominator == len(ar) and found.masked == len(diffusion) and found.maskable == batch.maskable
    assert found.masked.dtype == torch.float32 and found.masked.shape == ()


def test_a_wrong_number_of_losses_is_refused(rows, settings, batches):
    (batch,) = batches(rows, settings(), 8)
    with pytest.raises(AssertionError, match="losses for"):
        loss_terms(torch.zeros(3), torch.zeros(batch.diffusion_positions.shape), batch)


@pytest.mark.parametrize("term", ["ar", "diffusion"])
def test_prompt_and_padding_have_no_gradient_and_every_answer_token_has_one(answer, settings, batches, term):
    """Gradient of each term with respect to all logits, over enough draws that every answer token is masked once."""
    touched = torch.zeros(48, dtype=torch.bool)
    for seed in range(20):
        (batch,) = batches(answer, settings(noise_seed=seed), 8)
        logits = torch.zeros(8 * 48, 40, dtype=torch.float64, requires_grad=True)
        ar = cross_entropy(logits[batch.ar_positions], batch.ar_targets)
        diffusion = cross_entropy(logits[batch.diffusion_positions], batch.diffusion_targets)
        found = loss_terms(ar, diffusion, batch)
        (found.ar_sum if term == "ar" else found.diffusion_sum).backward()
        touched |= (logits.grad != 0).view(8, 48, 40).any(2).any(0)
    # Clean position i predicts token i + 1: from the last of the prompt to the last but one of the answer.
    # Noisy position i predicts token i: the answer, its end token included.
    expected = {"ar": range(24 + PROMPT - 1, 24 + LAST), "diffusion": range(PROMPT, LAST + 1)}
    assert touched.nonzero().flatten().tolist() == list(expected[term])


def test_targets_are_the_tokens_themselves_and_the_next_ones(answer, settings, batches):
    (batch,) = batches(answer, settings(), 8)
    row, place = batch.ar_positions // 48, batch.ar_positions % 48 - 24
    assert batch.ar_targets.tolist() == [answer[r].tokens[i + 1] for r, i in zip(row, place, strict=True)]
    row, place = batch.diffusion_positions // 48, batch.diffusion_positions % 48
    assert batch.diffusion_targets.tolist() == [answer[r].tokens[i] for r, i in zip(row, place, strict=True)]
