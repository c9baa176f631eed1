"""Attention on torch's flex_attention: block-sparse, grouped key/value heads as they are. The GPU's path.

On CUDA it is compiled to one kernel that skips the tiles nobody sees, and no table of pairs is ever made. On the CPU it
runs uncompiled and forward only (torch refuses its backward there): enough to check masks on a laptop.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from nld_train.attention.compiled import compile_on_gpu
from nld_train.attention.fused.lse_merge import to_heads_first, to_tokens_first
from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.dual_stream.mask_spec import MaskSpec, copy_to_device
from nld_train.dual_stream.row_layout import PositionInfo, RowLayout, locate_positions, locate_row
from nld_train.dual_stream.visibility import is_visible

# Which queries, and what they see: all of them; the noisy ones; the noisy ones, but for the clean tokens that are a
# block or more before them (pieces.py).
MaskPart = Literal["all", "noisy", "near"]
KernelOptions = dict[str, str]
TRITON: KernelOptions = {}
FLASH: KernelOptions = {"BACKEND": "FLASH"}  # FlashAttention 4's kernel, where that package is installed


def attend_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scale: float,
    documents: Tensor | None = None,
    cut: ContextShard = WHOLE,
    *,
    options: KernelOptions = TRITON,
) -> Tensor:
    """query [B, H, S/c, D]; key, value [B, G, K, D]; documents [B, L] int64 or None. Returns: [B, H, S/c, D]."""
    mask = flex_block_mask(MaskSpec.of(layout, cut, documents), query.device)
    output: Tensor = _run(query, key, value, mask, scale, kernel_options=options)
    return output


def attend_noisy_flex(query: Tensor, key: Tensor, value: Tensor, sight: MaskSpec, scale: float) -> Tensor:
    """The noisy half: query [T, N, D] over key, value [K, M, D] (merged.NoisyHalf)."""
    mask = flex_block_mask(sight, query.device, "noisy")
    query, key, value = (to_heads_first(x, 1) for x in (query, key, value))
    output: Tensor = _run(query, key, value, mask, scale)
    return to_tokens_first(output)


class FlexLocalAttention:
    """near.Near: the noisy half without what its shifted triangles see."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sight: MaskSpec, scale: float
    ) -> tuple[Tensor, Tensor]:
        mask = flex_block_mask(sight, query.device, "near")
        query, key, value = (to_heads_first(x, 1) for x in (query, key, value))
        output, seen = _run(query, key, value, mask, scale, return_aux=AuxRequest(lse=True))
        return to_tokens_first(output), seen.lse[0]

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        sight: MaskSpec,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run again with autograd, instead of keeping its output for as long as the layer's: it is a small piece."""
        with torch.enable_grad():
            query, key, value = inputs = tuple(x.detach().requires_grad_() for x in (query, key, value))
            own, own_lse = self.forward(query, key, value, sight, scale)
        d_own, d_lse = compile_on_gpu(_piece_gradients, query.device.type, dynamic=False)(
            gradient, own.detach(), own_lse.detach(), output, lse
        )
        d_query, d_key, d_value = torch.autograd.grad((own, own_lse), inputs, (d_own, d_lse))
        return d_query, d_key, d_value


def _piece_gradients(
    gradient: Tensor, own: Tensor, own_lse: Tensor, output: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """From the gradient of a merged output to those of one piece's output `own` [T, N, D] and `own_lse` [N, T].

    With w = exp(own_lse - lse), the merged output moves by w as `own` does, and by w * (own - output) as own_lse does.
    """
    share, wide = (own_lse - lse).exp(), gradient.to(lse.dtype)
    d_lse = share * (wide * (own.to(lse.dtype) - output)).sum(-1).transpose(0, 1)
    return (wide * share.transpose(0, 1)[..., None]).to(own.dtype), d_lse


def _run(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float, **settings: Any) -> Any:
    grouped = query.shape[1] != key.shape[1]
    # fullgraph: an error, not dense attention, where torch has compiled more shapes than it allows in one process.
    kernel = compile_on_gpu(flex_attention, query.device.type, dynamic=False, fullgraph=True)
    return kernel(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped, **settings)


@lru_cache(maxsize=8)
def flex_block_mask(sight: MaskSpec, device: torch.device, part: MaskPart = "all") -> BlockMask:
    """Built once for all layers that see alike: for good of rows of one document, for a forward of packed ones."""
    # Never of inference tensors, even if an evaluation comes first: training saves the mask for its backward.
    with torch.inference_mode(False):
        batch, mask_mod = (
            _one_document_mask_mod(sight, part) if sight.documents is None else _packed_mask_mod(sight, part, device)
        )
        queries = sight.layout.size // sight.cut.ranks if part == "all" else sight.own_noisy
        keys = sight.cut.key_count(sight.layout, packed=sight.documents is not None)
        # Compiled, the S x S pairs are counted tile by tile and never laid out.
        mask: BlockMask = compile_on_gpu(create_block_mask, device.type)(mask_mod, batch, None, queries, keys, device)
    return mask


MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _one_document_mask_mod(sight: MaskSpec, part: MaskPart) -> tuple[None, MaskMod]:
    """Places are arithmetic on the index: no table is read."""
    layout, cut = sight.layout, sight.cut

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        looking = locate_positions(layout, cut.queries_at(layout, query))
        return _visible_in_part(part, layout, looking, locate_positions(layout, cut.keys_at(layout, key, packed=False)))

    return None, mask_mod


def _packed_mask_mod(sight: MaskSpec, part: MaskPart, device: torch.device) -> tuple[int, MaskMod]:
    """Places are looked up row by row."""
    layout, cut, documents = sight.layout, sight.cut, copy_to_device(sight.document_numbers(), device)
    table = locate_row(layout, documents)

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        looking = table.at(batch, cut.queries_at(layout, query))
        return _visible_in_part(part, layout, looking, table.at(batch, cut.keys_at(layout, key, packed=True)))

    return len(documents), mask_mod


def _visible_in_part(part: MaskPart, layout: RowLayout, looking: PositionInfo, seen: PositionInfo) -> Tensor:
    """Visible, and of this part: bool."""
    if part != "near":
        return is_visible(looking, seen)
    return is_visible(looking, seen) & (seen.noisy | (seen.position > looking.position - layout.block_size))
