"""Attention on torch's flex_attention: block-sparse, grouped key/value heads as they are. The GPU's path.

On CUDA it is compiled to one kernel that skips the tiles nobody sees, and no table of pairs is ever made. On the CPU it
runs uncompiled and forward only (torch refuses its backward there): enough to check masks on a laptop.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from nld_train.dual_stream.context import WHOLE, Cut
from nld_train.dual_stream.layout import Layout, place, places
from nld_train.dual_stream.visibility import visible


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float,
    documents: Tensor | None = None,
    cut: Cut = WHOLE,
) -> Tensor:
    """query [B, H, S/c, D]; key, value [B, G, K, D]; documents [B, L] int64 or None. Returns: [B, H, S/c, D]."""
    mask = block_mask(layout, cut, query.device) if documents is None else document_block_mask(layout, cut, documents)
    grouped = query.shape[1] != key.shape[1]
    output: Tensor = kernel(query.device.type)(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)
    return output


@lru_cache(maxsize=8)
def block_mask(layout: Layout, cut: Cut, device: torch.device) -> BlockMask:
    """The block mask of rows of one document, built once."""

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query, key = cut.queries_at(layout, query), cut.keys_at(layout, key, packed=False)
        return visible(place(layout, query), place(layout, key))

    return _build(mask_mod, None, layout, cut, False, device)


# Keyed by the identity of the documents tensor: the layers of one forward share one mask, and two are alive at most.
@lru_cache(maxsize=2)
def document_block_mask(layout: Layout, cut: Cut, documents: Tensor) -> BlockMask:
    """The block mask of a batch of packed rows; documents [B, L]."""
    table = places(layout, documents)

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query, key = cut.queries_at(layout, query), cut.keys_at(layout, key, packed=True)
        return visible(table.at(batch, query), table.at(batch, key))

    return _build(mask_mod, documents.shape[0], layout, cut, True, documents.device)


def _build(
    mask_mod: Callable[..., Tensor], batch: int | None, layout: Layout, cut: Cut, packed: bool, device: torch.device
) -> BlockMask:
    queries, keys = layout.size // cut.ranks, cut.key_count(layout, packed)
    # Never of inference tensors, even if an evaluation comes first: training saves the mask for its backward.
    with torch.inference_mode(False):
        mask: BlockMask = mask_builder(device.type)(mask_mod, batch, None, queries, keys, device)
    return mask


@lru_cache
def kernel(device_type: str) -> Callable[..., Any]:
    """flex_attention, fused on CUDA."""
    if device_type != "cuda":
        return flex_attention
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled


@lru_cache
def mask_builder(device_type: str) -> Callable[..., Any]:
    """create_block_mask, compiled on CUDA so that the S x S pairs are counted tile by tile and never laid out."""
    if device_type != "cuda":
        return create_block_mask
    compiled: Callable[..., Any] = torch.compile(create_block_mask)
    return compiled
