"""The PCA of a model's embedding: the P numbers by which the sampler knows a token.

Letters: E hidden size, V vocabulary size, P numbers of a compressed embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.objective_sections import COMPONENTS

PIECE = 1 << 13  # rows of the embedding that are widened at a time


@dataclass(frozen=True)
class EmbeddingPCA:
    """The compressed embedding of every token, and how it was made: coordinates = (table - mean) @ basis / scale."""

    mean: Tensor  # [E] float64
    basis: Tensor  # [E, P] float64: orthonormal columns, in the order of their variance
    scale: float  # the standard deviation along the first column, so that the numbers are of order one
    explained: float  # share of the variance that the columns hold
    coordinates: Tensor  # [V, P] float16: what the sampler is given


def fit_embedding_pca(table: Tensor, components: int = COMPONENTS) -> EmbeddingPCA:
    """The PCA of an embedding [V, E] in float64, with `components` columns, or as many as there are.

    The columns are eigenvectors of the covariance, which needs E^2 numbers of memory beside the table. The number of
    the largest size in a column, of equals the first, is positive.
    """
    table = table.detach()
    rows, hidden = table.shape
    assert rows > 1, "an embedding of one token has no variance"
    mean = sum((piece.double().cpu().sum(0) for piece in table.split(PIECE)), torch.zeros(hidden).double()) / rows
    covariance = torch.zeros(hidden, hidden, dtype=torch.float64)
    for piece in table.split(PIECE):
        centred = piece.double().cpu() - mean
        covariance += centred.T @ centred / rows
    variance, columns = torch.linalg.eigh(covariance)  # ascending
    count = min(components, hidden, rows - 1)
    basis, kept = columns.flip(1)[:, :count], variance.flip(0)[:count]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * largest.sign()
    scale = float(kept[0].sqrt())
    assert scale > 0, "all tokens have one embedding"
    pieces = [((piece.double().cpu() - mean) @ basis / scale).half() for piece in table.split(PIECE)]
    return EmbeddingPCA(mean, basis, scale, float(kept.sum() / variance.sum()), torch.cat(pieces))
