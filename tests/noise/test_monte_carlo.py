"""Every law is unbiased, position by position: 20,480 draws through corruption and collation, as a run does it."""

import pytest
import torch

from nld_train.config import DiffusionConfig
from nld_train.dual_stream.batch import collate_rows
from nld_train.noise.corrupt import corrupt_row
from nld_train.noise.law import LAWS
from nld_train.types import Row

DRAWS, LENGTH = 20_480, 10
SUPERVISED = torch.tensor([True, True, False, True, True, True, False, True, True, True, True])
DEVIATIONS = 5.0  # of the estimate's own spread; by chance once in 1.7 million


@pytest.fixture(scope="module", params=LAWS)
def drawn(request):
    """p, z and the collated weights of every draw, [DRAWS, L] float64 each."""
    config = DiffusionConfig(block_size=4, noise_law=request.param)
    tokens = torch.arange(200, 200 + LENGTH + 1)
    rows = [corrupt_row(Row(index, tokens, SUPERVISED), config, "train", global_batch=64) for index in range(DRAWS)]
    batch = collate_rows(rows, config)
    weights = torch.zeros(batch.input_ids.numel(), dtype=torch.float64)
    weights[batch.diffusion_positions] = batch.diffusion_weights.double()
    p = torch.stack([row.p for row in rows]).double()
    masked = torch.stack([row.masked for row in rows]).double()
    return p, masked, weights.view(DRAWS, 2 * LENGTH)[:, :LENGTH]


def test_weights_average_to_one_where_supervised_and_are_zero_elsewhere(drawn):
    p, _, weights = drawn
    spread = ((1 / p - 1).mean(0) / DRAWS).sqrt()
    supervised = SUPERVISED[:-1]
    assert ((weights.mean(0) - 1).abs() < DEVIATIONS * spread)[supervised].all()
    assert (weights[:, ~supervised] == 0).all()


def test_weights_average_to_one_at_every_noise_level(drawn):
    """All places together, level by level: sharp enough for a weight that is wrong by 2 %."""
    p, _, weights = (part[:, SUPERVISED[:-1]] for part in drawn)
    for low in torch.arange(0, 1, 0.1):
        at = (p >= low) & (p < low + 0.1)
        excess, variance = (weights[at] - 1).sum(), (1 / p[at] - 1).sum()
        assert at.sum() > 10_000 and excess.abs() < DEVIATIONS * variance.sqrt()


def test_tokens_are_masked_as_often_as_p_says(drawn):
    p, masked, _ = drawn
    spread = ((p * (1 - p)).mean(0) / DRAWS).sqrt()
    assert ((masked - p).mean(0).abs() < DEVIATIONS * spread)[SUPERVISED[:-1]].all()


def test_tokens_are_masked_as_often_as_p_says_at_every_noise_level(drawn):
    p, masked, _ = drawn
    for place in SUPERVISED[:-1].nonzero().flatten():
        for low in torch.arange(0, 1, 0.1):
            at = (p[:, place] >= low) & (p[:, place] < low + 0.1)
            excess = (masked - p)[at, place].sum()
            assert at.sum() > 1000 and excess.abs() < DEVIATIONS * (p * (1 - p))[at, place].sum().sqrt()


def test_given_p_places_of_a_row_are_masked_independently(drawn):
    p, masked, _ = drawn
    rest, variance = masked - p, p * (1 - p)
    for one, other in ((0, 1), (0, 9), (3, 4), (5, 8)):
        together = (rest[:, one] * rest[:, other]).sum()
        assert together.abs() < 2**0.5 * DEVIATIONS * (variance[:, one] * variance[:, other]).sum().sqrt()
