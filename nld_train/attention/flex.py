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

from nld_train.attention.fused import fused
from nld_train.attention.merged import heads_first, tokens_first
from nld_train.dual_stream.context import WHOLE, Cut
from nld_train.dual_stream.layout import Layout, Places, place, places
from nld_train.dual_stream.sight import Sight, sent
from nld_train.dual_stream.visibility import visible

# Which queries, and what they see: all of them; the noisy ones; the noisy ones, but for the clean tokens that are a
# block or more before them (pieces.py).
Part = Literal["all", "noisy", "near"]
KernelOptions = dict[str, str]
TRITON: KernelOptions = {}
FLASH: KernelOptions = {"BACKEND": "FLASH"}  # FlashAttention 4's kernel, where that package is installed


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float,
    documents: Tensor | None = None,
    cut: Cut = WHOLE,
    *,
    options: KernelOptions = TRITON,
) -> Tensor:
    """query [B, H, S/c, D]; key, value [B, G, K, D]; documents [B, L] int64 or None. Returns: [B, H, S/c, D]."""
    mask = block_mask(Sight.of(layout, cut, documents), query.device)
    output: Tensor = _run(query, key, value, mask, scale, kernel_options=options)
    return output


def noisy_half(query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float) -> Tensor:
    """The noisy half: query [T, N, D] over key, value [K, M, D] (merged.NoisyHalf)."""
    mask = block_mask(sight, query.device, "noisy")
    query, key, value = (heads_first(x, 1) for x in (query, key, value))
    output: Tensor = _run(query, key, value, mask, scale)
    return tokens_first(output)


class Near:
    """near.Near: the noisy half without what its shifted triangles see."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float) -> tuple[Tensor, Tensor]:
        mask = block_mask(sight, query.device, "near")
        query, key, value = (heads_first(x, 1) for x in (query, key, value))
        output, seen = _run(query, key, value, mask, scale, return_aux=AuxRequest(lse=True))
        return tokens_first(output), seen.lse[0]

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        sight: Sight,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run again with autograd, instead of keeping its output for as long as the layer's: it is a small piece."""
        with torch.enable_grad():
            query, key, value = inputs = tuple(x.detach().requires_grad_() for x in (query, key, value))
            own, own_lse = self.forward(query, key, value, sight, scale)
        d_own, d_lse = fused(share_of_gradient, query.device.type, dynamic=False)(
            gradient, own.detach(), own_lse.detach(), output, lse
        )
        d_query, d_key, d_value = torch.autograd.grad((own, own_lse), inputs, (d_own, d_lse))
        return d_query, d_key, d_value


def share_of_gradient(
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
    kernel = fused(flex_attention, query.device.type, dynamic=False, fullgraph=True)
    return kernel(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped, **settings)


@lru_cache(maxsize=8)
def block_mask(sight: Sight, device: torch.device, part: Part = "all") -> BlockMask:
    """Built once for all layers that see alike: for good of rows of one document, for a forward of packed ones."""
    # Never of inference tensors, even if an evaluation comes first: training saves the mask for its backward.
    with torch.inference_mode(False):
        batch, mask_mod = one_document(sight, part) if sight.documents is None else packed(sight, part, device)
        queries = sight.layout.size // sight.cut.ranks if part == "all" else sight.own_noisy
        keys = sight.cut.key_count(sight.layout, packed=sight.documents is not None)
        # Compiled, the S x S pairs are counted tile by tile and never laid out.
        mask: BlockMask = fused(create_block_mask, device.type)(mask_mod, batch, None, queries, keys, device)
    return mask


MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def one_document(sight: Sight, part: Part) -> tuple[None, MaskMod]:
    """Places are arithmetic on the index: no table is read."""
    layout, cut = sight.layout, sight.cut

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        looking = place(layout, cut.queries_at(layout, query))
        return seen_in(part, layout, looking, place(layout, cut.keys_at(layout, key, packed=False)))

    return None, mask_mod


def packed(sight: Sight, part: Part, device: torch.device) -> tuple[int, MaskMod]:
    """Places are looked up row by row."""
    layout, cut, documents = sight.layout, sight.cut, sent(sight.document_numbers(), device)
    table = places(layout, documents)

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        looking = table.at(batch, cut.queries_at(layout, query))
        return seen_in(part, layout, looking, table.at(batch, cut.keys_at(layout, key, packed=True)))

    return len(documents), mask_mod


def seen_in(part: Part, layout: Layout, looking: Places, seen: Places) -> Tensor:
    """Visible, and of this part: bool."""
    if part != "near":
        return visible(looking, seen)
    return visible(looking, seen) & (seen.noisy | (seen.position > looking.position - layout.block_size))
