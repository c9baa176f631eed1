"""The network of the sampler: for every position of a block, is the top-1 of this step the token that will stand there?

The paper's: a Transformer over the block that sees in both directions, 4 layers, width 384, a linear head per position
and its sigmoid, 4.8M parameters; the FFN's width 768 reproduces that figure. Ours: 6 heads, no dropout, norms before
the sublayers, GELU, places as sines. This file travels with every export.

Letters: N blocks, B tokens of a block, F features of a position, C width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from .sampler_features_nemotron_labs_diffusion import STATISTICS, TOP

WAVES = 10_000.0  # the longest wave of the places, in tokens over 2 pi


@dataclass(frozen=True)
class NetworkShape:
    """The sizes of the network."""

    features: int  # F
    layers: int = 4
    width: int = 384  # C
    ffn: int = 768
    heads: int = 6
    dropout: float = 0.0
    attention: bool = True  # False: an MLP that judges every position alone, for comparison
    top_embedding: bool = True  # False: it is not told which token it judges, for comparison


class BlockAttention(nn.Module):
    """Every position sees all positions of its block."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, present: Tensor | None) -> Tensor:
        """x [N, B, C] -> [N, B, C]. present: [N, B] bool, False where a shorter block is padded; None: nowhere."""
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if present is None else present[:, None, None]
        return self.out(scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear maps with a GELU between."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, shape.ffn)
        self.down = nn.Linear(shape.ffn, shape.width)

    def forward(self, x: Tensor, present: Tensor | None) -> Tensor:
        """x [N, B, C] -> [N, B, C], every position by itself."""
        return self.down(gelu(self.up(self.norm(x))))


class SamplerNetwork(nn.Module):
    """Judges the positions of blocks."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.given = nn.Linear(shape.features, shape.width)
        self.flag = nn.Embedding(2, shape.width)  # of a committed position, of a masked one
        attends = (BlockAttention,) if shape.attention else ()
        self.sublayers = nn.ModuleList(kind(shape) for _ in range(shape.layers) for kind in (*attends, FeedForward))
        self.dropout = nn.Dropout(shape.dropout)
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, 1)

    def forward(self, features: Tensor, masked: Tensor, present: Tensor | None = None) -> Tensor:
        """Logits [N, B] that the top-1 of masked positions is final, of features [N, B, F] and masked [N, B] bool.

        Committed positions are seen by the others; their own logits mean nothing and take part in no loss. present:
        [N, B] bool, False where a block is padded on the right: nobody sees such a position. None: there is none.
        """
        if not self.shape.top_embedding:
            first = (
                torch.arange(self.shape.features, device=features.device)
                < (self.shape.features - len(STATISTICS)) // TOP
            )
            features = features.masked_fill(masked[..., None] & first, 0.0)
        places = place_waves(features.shape[1], self.shape.width).to(features)
        x = self.dropout(self.given(features) + self.flag(masked.long()) + places)
        for sublayer in self.sublayers:
            x = x + self.dropout(sublayer(x, present))
        return self.head(self.norm(x)).squeeze(-1)


def place_waves(length: int, width: int) -> Tensor:
    """Sines and cosines [B, C] of the places in a block: no parameters, and good for blocks of any length."""
    waves = WAVES ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * waves
    return torch.cat([angles.sin(), angles.cos()], -1)
