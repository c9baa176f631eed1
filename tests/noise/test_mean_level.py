"""The mean that planning reckons with is the mean of the law's own draws."""

import pytest
import torch

from nld_train.config import DiffusionConfig, NoiseLaw
from nld_train.noise.law import LAWS, NoiseSample, draw_mask
from nld_train.noise.mean_level import MEAN_LEVELS, mean_mask_probability

ROWS, LENGTH, BATCH = 2000, 32, 8


def test_every_law_has_a_mean() -> None:
    assert set(MEAN_LEVELS) == set(LAWS)


@pytest.mark.parametrize("eps", [1e-3, 0.2])
@pytest.mark.parametrize("law", list(LAWS))
def test_the_mean_is_that_of_the_draws(law: NoiseLaw, eps: float) -> None:
    blocks = torch.arange(LENGTH) // 8
    drawn = [draw_mask(law, eps, NoiseSample(1, "train", index, BATCH, blocks, 1)) for index in range(ROWS)]
    rows = torch.stack([p.mean() for p, _ in drawn])
    masked = torch.stack([masked.float().mean() for _, masked in drawn])
    expected = mean_mask_probability(DiffusionConfig(noise_law=law, noise_eps=eps))
    # A row's mean has a standard deviation of at most 1 / sqrt(12) (p) and 1 / 2 (masked tokens): five of the mean's.
    assert abs(rows.mean() - expected) < 5 / 12**0.5 / ROWS**0.5
    assert abs(masked.mean() - expected) < 5 / 2 / ROWS**0.5
