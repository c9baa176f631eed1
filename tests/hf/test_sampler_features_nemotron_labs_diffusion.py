"""Features of positions against their formulas, one number at a time."""

import math

import pytest
import torch

from nld_train.hf.sampler_features_nemotron_labs_diffusion import (
    CERTAIN,
    STATISTICS,
    committed_features,
    describe_distributions,
    feature_count,
    position_features,
)
from nld_train.trajectories.embedding_pca import COMPONENTS
from tests.sampler.slow_sampler import slow_statistics


def test_the_papers_144_numbers() -> None:
    assert len(STATISTICS) == len(CERTAIN) == 12 and feature_count(COMPONENTS) == 144


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 60.0])
def test_statistics_are_their_formulas(spread: float) -> None:
    torch.manual_seed(2)
    logits = (spread * torch.randn(20, 9)).double()
    logits[:, 4] = -torch.inf
    seen = describe_distributions(logits)
    for row, (top, statistics) in enumerate(zip(seen.top.tolist(), seen.statistics.tolist(), strict=True)):
        want_top, want = slow_statistics(logits[row].tolist())
        assert top == want_top and statistics == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_of_equals_the_lowest_id_comes_first() -> None:
    """Logits in bfloat16 are often equal."""
    logits = torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0, 1.0], dtype=torch.bfloat16)
    assert describe_distributions(logits.expand(3, 6)).top.tolist() == [[1, 2, 4]] * 3


def test_a_sure_distribution_keeps_its_odds_in_float16() -> None:
    """p_1 rounds to 1 in float16; the ratios still tell one sure position from a surer one."""
    seen = describe_distributions(torch.tensor([[10.0, 0.0, 0.0, 0.0], [14.0, 0.0, 0.0, 0.0]])).statistics.half()
    assert seen[0, 0] == seen[1, 0] == 1 and seen[0, 9] == pytest.approx(10 - math.log(3), abs=0.01)
    assert seen[0, 8] < seen[1, 8] and seen[0, 9] < seen[1, 9]


def test_features_are_the_three_tokens_and_the_statistics() -> None:
    coordinates = torch.randn(300, 5).half()
    top, statistics = torch.tensor([[7, 2, 9]]), torch.rand(1, 12).half()
    features = position_features(coordinates, top, statistics)
    assert features.tolist()[0] == [*coordinates[[7, 2, 9]].float().flatten().tolist(), *statistics[0].tolist()]
    done = committed_features(coordinates, torch.tensor([7]))
    assert done.tolist()[0] == [*coordinates[7].float().tolist(), *[0.0] * 10, *CERTAIN]


def test_certain_is_the_limit_of_sure_distributions() -> None:
    sure = describe_distributions(torch.tensor([500.0, 0.0, 0.0, 0.0])).statistics
    assert sure.tolist() == pytest.approx(CERTAIN, abs=1e-6)
