"""Cross-entropy per position: what the vocabulary-parallel one (loss/lm_head.py) is compared with."""

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] in nats. logits [R, V]; targets [R] int64.

    Returns: [R] float32; float64 stays float64.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits.to(wide), targets, reduction="none")
