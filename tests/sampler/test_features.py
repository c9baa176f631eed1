"""Features of positions against their formulas, one number at a time, and the PCA against the definition."""

import math

import pytest
import torch

from nld_train.sampler.features import (
    CERTAIN,
    COMPONENTS,
    STATISTICS,
    committed_features,
    describe_distributions,
    feature_count,
    fit_embedding_pca,
    position_features,
)
from tests.sampler.slow_sampler import slow_statistics


def embedding(rows: int = 300, hidden: int = 64) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(rows, hidden) @ torch.randn(hidden, hidden) + 3


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


def test_pca_is_the_best_projection() -> None:
    table = embedding()
    pca = fit_embedding_pca(table, 8)
    centred = table.double() - table.double().mean(0)
    singular = torch.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(pca.basis.T @ pca.basis, torch.eye(8).double(), atol=1e-12)
    assert torch.allclose((pca.basis.T @ singular.Vh[:8].T).abs(), torch.eye(8).double(), atol=1e-9)
    assert pca.explained == pytest.approx(float((singular.S[:8] ** 2).sum() / (singular.S**2).sum()))
    want = centred @ pca.basis / pca.scale
    assert torch.equal(pca.coordinates, want.half()) and want[:, 0].std(correction=0) == pytest.approx(1)


def test_pca_is_the_same_every_time_and_its_signs_are_fixed() -> None:
    """The mirrored table has mirrored coordinates: no sign is left to the library."""
    table = embedding()
    pca, again, mirrored = fit_embedding_pca(table), fit_embedding_pca(table.clone()), fit_embedding_pca(-table)
    assert torch.equal(pca.basis, again.basis) and torch.equal(pca.coordinates, again.coordinates)
    assert (
        torch.allclose(pca.basis, mirrored.basis) and (pca.basis.gather(0, pca.basis.abs().argmax(0)[None]) > 0).all()
    )


def test_a_small_model_has_fewer_components() -> None:
    assert fit_embedding_pca(embedding(300, 20)).coordinates.shape == (300, 20)
    assert fit_embedding_pca(embedding(6, 32)).coordinates.shape == (6, 5)


def test_features_are_the_three_tokens_and_the_statistics() -> None:
    coordinates = fit_embedding_pca(embedding(), 5).coordinates
    top, statistics = torch.tensor([[7, 2, 9]]), torch.rand(1, 12).half()
    features = position_features(coordinates, top, statistics)
    assert features.tolist()[0] == [*coordinates[[7, 2, 9]].float().flatten().tolist(), *statistics[0].tolist()]
    done = committed_features(coordinates, torch.tensor([7]))
    assert done.tolist()[0] == [*coordinates[7].float().tolist(), *[0.0] * 10, *CERTAIN]


def test_certain_is_the_limit_of_sure_distributions() -> None:
    sure = describe_distributions(torch.tensor([500.0, 0.0, 0.0, 0.0])).statistics
    assert sure.tolist() == pytest.approx(CERTAIN, abs=1e-6)
