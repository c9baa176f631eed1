"""Attention on torch's flex_attention: block-sparse, grouped key/value heads as they are. This is the GPU's path.

On CUDA it is compiled to one kernel that skips the tiles nobody sees, and no table of pairs is ever made. On the CPU it
runs uncompiled and forward only, because torch refuses its backward there: enough to check masks on a laptop.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from nld_train.attention.compiled import compile_on_gpu
from nld_train.attention.fused.kernel import QKV, MergedResult
from nld_train.attention.fused.lse_merge import to_heads_first, to_tokens_first
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import PositionInfo, RowLayout, locate_positions, locate_row
from nld_train.dual_stream.visibility import is_visible

# The queries of a mask, and what they see.
#   all    all queries, all that they see
#   noisy  the noisy queries, all that they see
#   local  the noisy queries, without the clean tokens that are a block or more before them, or before the last image
#          (fused/decomposition.py)
MaskPart = Literal["all", "noisy", "local"]
KernelOptions = dict[str, str]
TRITON: KernelOptions = {}
FLASH: KernelOptions = {"BACKEND": "FLASH"}  # FlashAttention 4's kernel, where that package is installed


def attend_flex(
    query: Tensor, key: Tensor, value: Tensor, spec: MaskSpec, scale: float, *, options: KernelOptions = TRITON
) -> Tensor:
    """query [B, H, S/c, D]; key, value [B, G, K, D]. Returns: [B, H, S/c, D]."""
    mask = flex_block_mask(spec, query.device)
    output: Tensor = _run(QKV(query, key, value), mask, scale, kernel_options=options)
    return output


def attend_noisy_flex(qkv: QKV, spec: MaskSpec, scale: float) -> Tensor:
    """The noisy half (`lse_merge.NoisyAttention`): query [T, N, D] over key, value [K, M, D]. Returns: [T, N, D]."""
    mask = flex_block_mask(spec, qkv.query.device, "noisy")
    output: Tensor = _run(QKV(*(to_heads_first(x, 1) for x in qkv)), mask, scale)
    return to_tokens_first(output)


class FlexLocalAttention:
    """`local.LocalAttention`: the noisy half without the pairs of its shifted triangles."""

    def forward(self, qkv: QKV, spec: MaskSpec, scale: float) -> tuple[Tensor, Tensor]:
        """query [T, N, D], key and value [K, M, D] -> output [T, N, D], lse [N, T]."""
        mask = flex_block_mask(spec, qkv.query.device, "local")
        heads_first = QKV(*(to_heads_first(x, 1) for x in qkv))
        output, aux = _run(heads_first, mask, scale, return_aux=AuxRequest(lse=True))
        return to_tokens_first(output), aux.lse[0]

    def backward(self, qkv: QKV, merged: MergedResult, spec: MaskSpec, scale: float) -> QKV:
        """The local part of the gradients: query [T, N, D], key and value [K, M, D].

        The forward runs again, with autograd: the piece is small, and keeping its output for as long as the layer's
        would cost more than computing it twice.
        """
        with torch.enable_grad():
            inputs = QKV(*(x.detach().requires_grad_() for x in qkv))
            own, own_lse = self.forward(inputs, spec, scale)
        piece_gradients = compile_on_gpu(_piece_gradients, qkv.query.device.type, dynamic=False)
        d_own, d_lse = piece_gradients(merged.gradient, own.detach(), own_lse.detach(), merged.output, merged.lse)
        return QKV(*torch.autograd.grad((own, own_lse), inputs, (d_own, d_lse)))


def _piece_gradients(
    gradient: Tensor, own: Tensor, own_lse: Tensor, output: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """From the gradient of a merged output to the gradients of one piece's output `own` [T, N, D] and `own_lse` [N, T].

    With w = exp(own_lse - lse):  d output / d own = w,  d output / d own_lse = w * (own - output).
    """
    share, wide = (own_lse - lse).exp(), gradient.to(lse.dtype)
    d_lse = share * (wide * (own.to(lse.dtype) - output)).sum(-1).transpose(0, 1)
    return (wide * share.transpose(0, 1)[..., None]).to(own.dtype), d_lse


def _run(qkv: QKV, mask: BlockMask, scale: float, **settings: Any) -> Any:
    """flex_attention on query [B, H, Q, D], key and value [B, G, K, D]: [B, H, Q, D], and what `settings` ask for."""
    query, key, value = qkv
    grouped = query.shape[1] != key.shape[1]
    # fullgraph: an error, not dense attention, where torch has compiled more shapes than it allows in one process.
    kernel = compile_on_gpu(flex_attention, query.device.type, dynamic=False, fullgraph=True)
    return kernel(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped, **settings)


@lru_cache(maxsize=8)
def flex_block_mask(spec: MaskSpec, device: torch.device, part: MaskPart = "all") -> BlockMask:
    """The block mask of S/c queries over K keys, built once for all layers with this spec.

    Rows of one document find it again in every step. Packed rows build it once in every forward.
    """
    # Never of inference tensors, even if an evaluation comes first: training saves the mask for its backward.
    with torch.inference_mode(False):
        batch, mask_mod = _packed_mask_mod(spec, part, device) if spec.packed else _one_document_mask_mod(spec, part)
        queries = spec.query_count if part == "all" else spec.own_noisy_count
        # Compiled, the S x S pairs are counted tile by tile and never laid out.
        make_mask = compile_on_gpu(create_block_mask, device.type)
        mask: BlockMask = make_mask(mask_mod, batch, None, queries, spec.key_count, device)
    return mask


MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _one_document_mask_mod(spec: MaskSpec, part: MaskPart) -> tuple[None, MaskMod]:
    """The predicate by arithmetic on the indices: no table is read."""
    layout, shard = spec.layout, spec.shard

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_info = locate_positions(layout, shard.queries_at(layout, query))
        key_info = locate_positions(layout, shard.keys_at(layout, key, packed=False))
        return _visible_in_part(part, layout, query_info, key_info)

    return None, mask_mod


def _packed_mask_mod(spec: MaskSpec, part: MaskPart, device: torch.device) -> tuple[int, MaskMod]:
    """The number of rows, and the predicate by a table [B, S] in which each row's positions are looked up."""
    layout, shard = spec.layout, spec.shard
    documents, clean_only = spec.places_on(device)
    assert documents is not None, f"{spec}: rows that are not packed"
    info = locate_row(layout, documents, clean_only)

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_info = info.at(batch, shard.queries_at(layout, query))
        key_info = info.at(batch, shard.keys_at(layout, key, packed=True))
        return _visible_in_part(part, layout, query_info, key_info)

    return len(documents), mask_mod


def _visible_in_part(part: MaskPart, layout: RowLayout, query: PositionInfo, key: PositionInfo) -> Tensor:
    """Whether the query sees the key and the pair belongs to the part: bool [...]."""
    if part != "local":
        return is_visible(query, key)
    near = (key.stretch == query.stretch) & (key.position > query.position - layout.block_size)
    return is_visible(query, key) & (key.noisy | near)
