"""What the sampler is told of a position: its three most probable tokens, and 12 statistics of its distribution.

Of a token it is told the PCA of its input embedding: P numbers, so 3 P + 12 in all, and the paper's 144 at P = 44. The
paper names the top-1 probability, the margin, the top-3 mass and the entropy, and says that the embeddings are
compressed by PCA; P, the other eight statistics, and that the embedding is the input's, are ours.

This file travels with every export.

Letters: V vocabulary size, P numbers of a compressed embedding, F = 3 P + 12 features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TOP = 3
CAP = 16.0  # of differences of logits: e^-16 is the resolution of a probability in float32
# With p_1 >= p_2 >= ... the probabilities, z the logits, and s_v = -log p_v the surprisal of a token.
STATISTICS = (
    "p_1",  # named by the paper
    "p_2",
    "p_3",
    "p_1 - p_2",  # named by the paper
    "p_1 + p_2 + p_3",  # named by the paper
    "H = sum_v p_v s_v",  # named by the paper; nats
    "H / log V",
    "log p_1",
    "min(z_1 - z_2, CAP)",  # where p_1 is near 1, float16 holds the ratio better than the difference
    "log(p_1 / (1 - p_1)) within -CAP..CAP",
    "sum_v p_v^2",
    "sum_v p_v (s_v - H)^2",
)
# Of a token that is committed: the distribution with all weight on it, its ratios at the cap.
CERTAIN = (1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, CAP, CAP, 1.0, 0.0)


@dataclass(frozen=True)
class SeenDistribution:
    """What is kept of the distributions at some positions."""

    top: Tensor  # [..., 3] int64: the most probable tokens, the first the decoders' own
    statistics: Tensor  # [..., 12] in the order of STATISTICS


def describe_distributions(logits: Tensor) -> SeenDistribution:
    """The three most probable tokens and the statistics of logits [..., V], in float32 or, of such logits, float64.

    Of equals the lowest id comes first, as it does for the decoders. Tokens at -inf take no part; three are needed.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # 1. The tokens one after the other: topk leaves open which of equals comes first.
    rest, tokens, values = z, [], []
    for _ in range(TOP):
        token = rest.argmax(-1, keepdim=True)
        tokens.append(token)
        values.append(rest.gather(-1, token))
        rest = rest.scatter(-1, token, -torch.inf)
    top, (first, second) = torch.cat(tokens, -1), (value.squeeze(-1) for value in values[:2])
    # 2. The statistics.
    total = z.logsumexp(-1)
    p = z.softmax(-1)
    p1, p2, p3 = p.gather(-1, top).unbind(-1)  # to the bit what the decoders compare
    surprisal = (total[..., None] - z).masked_fill(p == 0, 0.0)  # 0 * inf where a token takes no part
    entropy = (p * surprisal).sum(-1)
    others = z.scatter(-1, top[..., :1], -torch.inf).logsumexp(-1)
    found = [
        *[p1, p2, p3, p1 - p2, p1 + p2 + p3, entropy, entropy / math.log(z.shape[-1]), first - total],
        *[(first - second).clamp(max=CAP), (first - others).clamp(-CAP, CAP)],
        *[p.square().sum(-1), (p * (surprisal - entropy[..., None]).square()).sum(-1)],
    ]
    return SeenDistribution(top, torch.stack(found, -1))


def feature_count(components: int) -> int:
    """F of P."""
    return TOP * components + len(STATISTICS)


def position_features(coordinates: Tensor, top: Tensor, statistics: Tensor) -> Tensor:
    """Features [..., F] float32 of positions with the tokens top [..., 3] and statistics [..., 12]."""
    return torch.cat([coordinates[top].float().flatten(-2), statistics.float()], -1)


def committed_features(coordinates: Tensor, tokens: Tensor) -> Tensor:
    """Features [..., F] float32 of positions whose tokens [...] are committed: the token, no second and third, and the
    statistics of a certain distribution. This choice is ours: others see what stands there, and the network's flag
    tells it from a prediction."""
    own = coordinates[tokens].float()
    certain = torch.tensor(CERTAIN, device=own.device).expand(*own.shape[:-1], -1)
    return torch.cat([own, torch.zeros_like(own), torch.zeros_like(own), certain], -1)
