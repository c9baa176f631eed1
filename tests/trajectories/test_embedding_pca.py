"""The PCA of an embedding against its definition."""

import pytest
import torch

from nld_train.trajectories.embedding_pca import fit_embedding_pca


def embedding(rows: int = 300, hidden: int = 64) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(rows, hidden) @ torch.randn(hidden, hidden) + 3


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
