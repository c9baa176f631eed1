"""Attention on cuDNN-frontend's Flex Attention, whose kernels read a mask as intervals of keys. Hopper and newer.

Every query of the doubled row sees two intervals of keys at most: of its own noisy block, and of its document's clean
tokens. The interface is that of nvidia-cudnn-frontend 1.32.0, read in its sources. On the CPU the intervals are proved,
and the calls on a stand-in of the same signatures; no GPU has run it.
"""

import importlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nld_train.attention.fused.te_call import must_be_deterministic
from nld_train.dual_stream.mask_spec import MaskSpec, copy_to_device
from nld_train.dual_stream.row_layout import locate_row


@lru_cache
def load_cudnn_flex() -> Any:
    """cuDNN-frontend's module, imported on first use: the import takes seconds."""
    return importlib.import_module("cudnn.flex_attention")


def attend_cudnn_flex(query: Tensor, key: Tensor, value: Tensor, spec: MaskSpec, scale: float) -> Tensor:
    """query [B, H, S/c, D]; key, value [B, G, K, D]. Returns: [B, H, S/c, D]."""
    rows, heads, _, dim = query.shape
    plan = _mask_plan(spec, rows, (heads, key.shape[1], dim), query.dtype, query.device)
    output: Tensor = load_cudnn_flex().flex_attn_func(
        *(x.transpose(1, 2) for x in (query, key, value)),
        mask_plan=plan,
        softmax_scale=scale,
        deterministic=must_be_deterministic(),
    )
    return output.transpose(1, 2)


@lru_cache(maxsize=8)
def _mask_plan(spec: MaskSpec, rows: int, heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Any:
    """The library's plan for B rows of N query heads and M key heads of D = `heads`, built once for all layers.

    Rows of one document find it again in every step. Packed rows build it once in every forward.
    """
    query_heads, key_heads, dim = heads
    with torch.inference_mode(False):
        intervals = key_intervals(spec)
        ends = intervals.expand(rows, -1, -1).transpose(0, 1).flatten(1)[None].contiguous()
        # It takes tensors for their shapes alone.
        query = torch.empty(rows, spec.query_count, query_heads, dim, dtype=dtype, device=device)
        key = torch.empty(rows, spec.key_count, key_heads, dim, dtype=dtype, device=device)
        create_mask_plan = load_cudnn_flex().create_mask_plan
        return create_mask_plan(copy_to_device(ends, device), query, key, key, build_backward=True)


def key_intervals(spec: MaskSpec) -> Tensor:
    """The keys that each of the rank's queries sees, as the library writes them: [B, 5, S/c] int32 on the CPU, or
    [1, 5, S/c] where all rows are one document.

    The endpoints F0..F4 of a query stand for [0, F0), [F1, F2) and [F3, F4). The first is empty, the second is of noisy
    keys and the third of clean ones.
    """
    layout, size = spec.layout, spec.layout.block_size
    assert spec.clean_only is None, f"{spec}: backends.refuse_images lets no images come here"
    # 1. Where each query stands in its row, in its document and in its block.
    documents = spec.document_numbers() if spec.documents is not None else None
    info, at = locate_row(layout, documents), spec.shard.queries(layout)
    index, token = torch.arange(spec.query_count), at % layout.length
    position, noisy = info.position[..., at], info.noisy[..., at]
    in_block, start = position % size, token - position
    # 2. Noisy keys: the query's block, which ends at the document's end at the latest. Where nothing is packed they are
    #    the rank's own, where documents are there is one rank: noisy query number n has the noisy key number n.
    block = index - in_block
    to_document_end = index - token + _document_ends(spec)[..., token]
    block_end = index + 1 if layout.noisy_causal else torch.minimum(block + size, to_document_end)
    # 3. Clean keys: those of earlier blocks for a noisy query, those up to itself for a clean one.
    clean = spec.key_count - layout.length
    clean_end = torch.where(noisy, token - in_block, token + 1)
    ends = (0 * token, block * noisy, block_end * noisy, clean + start, clean + clean_end)
    return torch.stack(torch.broadcast_tensors(*ends), -2).int().reshape(-1, len(ends), spec.query_count)


def _document_ends(spec: MaskSpec) -> Tensor:
    """Behind which token of the row each token's document ends: [B, L] int64, or [L] where nothing is packed."""
    if spec.documents is None:
        return torch.full((spec.layout.length,), spec.layout.length)
    lengths = [torch.tensor(row) for row in spec.documents]
    return torch.stack([each.cumsum(0).repeat_interleave(each) for each in lengths])
