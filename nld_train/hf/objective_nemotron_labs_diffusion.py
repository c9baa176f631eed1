"""The losses that `labels` give: causal, denoising, and both at once (arXiv 2607.05722, equations 2 and 5). This file
travels with every export.

Letters: B rows, L tokens of a row, V vocabulary size. A *supervised* token is one with a label other than -100.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .cache_nemotron_labs_diffusion import token_places
from .configuration_nemotron_labs_diffusion import InputError

IGNORED = -100  # the label of a token that does not count
LEAST_NOISE = 1e-3  # epsilon of equation 2


def causal_loss(logits: Tensor, labels: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of logits [B, L, V] at position i with label i + 1 of labels [B, L], summed and divided by
    `count`; None: by the number of labels that count. Scalar, float32.
    """
    total = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (supervised_count(labels) if count is None else count)


def supervised_count(labels: Tensor) -> Tensor:
    """How many tokens of labels [B, L] are targets of a causal prediction; 1 where none is, so that the loss is 0."""
    return (labels[:, 1:] != IGNORED).sum().clamp(min=1)


def denoising_loss(logits: Tensor, ids: Tensor | None, labels: Tensor, mask_token_id: int) -> Tensor:
    """Mean cross-entropy of logits [B, L, V] of a noisy input with its own labels [B, L], where ids [B, L] are masked.

    A place that shows its own token counts nothing: it would train the model to copy.
    Raises: InputError where no place with a label is masked.
    """
    counted = labels != IGNORED
    masked = torch.zeros_like(counted) if ids is None else counted & (ids == mask_token_id)
    if not masked.any():
        raise InputError(
            "labels for an input that is seen in both directions and has no masked token with a label",
            f"inputs with the mask {mask_token_id} where the label stands, or use_causal_mask=True",
            "leave use_causal_mask out for the causal loss; set config.dlm_loss_weight for both losses at once",
        )
    return cross_entropy(logits[masked].float(), labels[masked])


@dataclass(frozen=True)
class DualStream:
    """A batch as [noisy | clean], which one forward reads for both terms of the objective."""

    ids: Tensor  # [B, 2L] int64
    position_ids: Tensor  # [B, 2L] int64: the same in both halves
    visible: Tensor  # [B, 1, 2L, 2L] bool: who sees whom
    weights: Tensor  # [B, L] float32: 1 / p where a token is masked, else 0


def dual_stream(
    ids: Tensor, labels: Tensor, attention_mask: Tensor | None, mask_token_id: int, block_size: int
) -> DualStream:
    """Corrupt the supervised tokens of ids [B, L], and lay noisy and clean half side by side.

    attention_mask: [B, L], 0 for padding. The noise is drawn from torch's generator: t ~ U(0, 1) per row,
    p = (1 - eps) t + eps, and every supervised token is masked with probability p (equation 2).
    """
    real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    level = torch.rand(len(ids), 1, device=ids.device)
    probability = (1 - LEAST_NOISE) * level + LEAST_NOISE
    masked = (torch.rand(ids.shape, device=ids.device) < probability) & (labels != IGNORED) & real
    places = token_places([0] * len(ids), ids.shape[1], real, ids.device)
    return DualStream(
        torch.cat([ids.masked_fill(masked, mask_token_id), ids], 1),
        torch.cat([places, places], 1),
        dual_stream_visibility(places, real, block_size),
        masked / probability,
    )


def dual_stream_visibility(places: Tensor, real: Tensor, block_size: int) -> Tensor:
    """Who sees whom in [noisy | clean]: [B, 1, 2L, 2L] bool.

    A noisy token sees the noisy ones of its block and the clean ones of the blocks before; a clean token sees the clean
    ones up to itself. places: [B, L] int64, the places of the tokens; real: [B, L] bool, False for padding, which is
    seen by itself alone.
    """
    query, key = places[:, :, None], places[:, None, :]
    own, other = query // block_size, key // block_size
    nothing = torch.zeros_like(own == other)
    noisy = torch.cat([own == other, other < own], -1)
    clean = torch.cat([nothing, key <= query], -1)
    seen = torch.cat([noisy, clean], 1) & torch.cat([real, real], 1)[:, None, :]
    itself = torch.eye(seen.shape[1], dtype=torch.bool, device=places.device)
    return (seen | itself)[:, None]


def diffusion_loss(logits: Tensor, labels: Tensor, weights: Tensor, count: Tensor | int) -> Tensor:
    """Sum of weighted cross-entropies of the masked tokens, divided by `count`. Scalar, float32.

    logits: [M, V] of the M masked tokens in the order of the batch; labels, weights: [B, L], weights 0 where a token is
    not masked.
    """
    masked = weights > 0
    each = cross_entropy(logits.float(), labels[masked], reduction="none")
    return (each * weights[masked]).sum() / count
