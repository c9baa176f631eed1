"""Transformer Engine's words for a piece of the row: shapes, formats, masks, lengths, and which kernels there are."""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nld_train.attention.fused.kernel import Segments, Window
from nld_train.dual_stream.mask_spec import copy_to_device
from nld_train.errors import UserError

EQUAL, RAGGED = "bshd", "thd"  # formats: problems of one shape, or of any
NEXT = "set train.attention=flex"


@dataclass(frozen=True)
class TransformerEngineModules:
    """What is used of Transformer Engine."""

    fused: Any  # the module of fused_attn_fwd, fused_attn_bwd and the names of their settings
    attention: Any  # the package of DotProductAttention
    parameters: Any  # the class of what a kernel is asked for by
    dtypes: Any  # torch's to Transformer Engine's


@lru_cache
def load_transformer_engine() -> TransformerEngineModules:
    """Transformer Engine, imported on first use: it takes seconds, and wants torch to be there before it."""
    from transformer_engine.pytorch import constants  # type: ignore[import-untyped]
    from transformer_engine.pytorch.attention import dot_product_attention  # type: ignore[import-untyped]
    from transformer_engine.pytorch.attention.dot_product_attention import utils  # type: ignore[import-untyped]
    from transformer_engine.pytorch.cpp_extensions import fused_attn  # type: ignore[import-untyped]

    return TransformerEngineModules(fused_attn, dot_product_attention, utils.FusedAttentionParams, constants.TE_DType)


@dataclass(frozen=True)
class TransformerEngineCall:
    """A piece in Transformer Engine's words."""

    problems: Segments
    band: Window
    scale: float
    heads: tuple[int, int, int]  # N, M, D
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(query: Tensor, key: Tensor, problems: Segments, band: Window, scale: float) -> "TransformerEngineCall":
        return TransformerEngineCall(problems, band, scale, (query.shape[1], *key.shape[1:]), query.dtype, query.device)

    @property
    def format(self) -> str:
        return EQUAL if self.problems.equal else RAGGED

    @property
    def layout(self) -> str:
        return "_".join([self.format] * 3)

    def shaped(self, x: Tensor) -> Tensor:
        """[T, N, D] as the kernel reads it, [P, T / P, N, D] of problems of one shape; a view of contiguous memory."""
        return x.contiguous().unflatten(0, (len(self.problems), -1)) if self.problems.equal else x.contiguous()

    def statistics(self, stats: Tensor) -> Tensor:
        """[P, N, Q, 1] or [T, N, 1] -> [N, T]."""
        if self.problems.equal:
            return stats.squeeze(-1).transpose(0, 1).flatten(1)
        if stats.dim() != 3:
            asked = f"softmax statistics of shape {list(stats.shape)} for packed documents"
            raise UserError(f"cuDNN is too old: {asked}", "cuDNN 9.6 or newer", NEXT)
        return stats.squeeze(-1).transpose(0, 1)

    def as_statistics(self, lse: Tensor) -> Tensor:
        """The opposite of `statistics`, contiguous."""
        if self.problems.equal:
            lse = lse.unflatten(1, (len(self.problems), -1))
        return lse.transpose(0, 1).contiguous()[..., None]

    def lengths(self) -> tuple[int, int, Tensor, Tensor]:
        """The longest, and where each starts and ends, of queries and keys."""
        queries, keys = self.problems.queries, self.problems.keys
        return max(queries), max(keys), _ends(queries, self.device), _ends(keys, self.device)

    def ragged_lengths(self) -> dict[str, Any]:
        """What DotProductAttention is told of lengths; of problems of one shape their tensors say all."""
        if self.problems.equal:
            return {}
        longest_query, longest_key, query_ends, key_ends = self.lengths()
        return {
            "cu_seqlens_q": query_ends,
            "cu_seqlens_kv": key_ends,
            "max_seqlen_q": longest_query,
            "max_seqlen_kv": longest_key,
            "pad_between_seqs": False,  # or it would read the ends to find out
        }

    def mask(self) -> dict[str, Any]:
        """window_size counts keys before and after the level one, -1 is without end; a window needs both ends, or
        causal. Ragged problems are "padding" there."""
        left, right = self.band.left, self.band.right
        padding = () if self.problems.equal else ("padding",)
        if right == 0:
            name = "_".join([*padding, "causal" if self.problems.square else "causal_bottom_right"])
            return {"attn_mask_type": name, "window_size": (-1 if left is None else left, 0)}
        assert right is None, f"{self.band}: no piece has such a one"
        window = (-1, -1) if left is None else (left, max(self.problems.queries))
        return {
            "attn_mask_type": "".join(padding) or "no_mask",
            "window_size": window,
            "bottom_right_diagonal": True,
        }

    def words(self) -> dict[str, Any]:
        """What both directions are told of it."""
        words = {"attn_scale": self.scale, "qkv_layout": self.layout, **self.mask()}
        if not self.problems.equal:
            _, _, query_ends, key_ends = self.lengths()
            words |= {"cu_seqlens_q_padded": query_ends, "cu_seqlens_kv_padded": key_ends}  # there is no padding
        return words

    def sub_backend(self) -> Any:
        """The cuDNN kernel family. Raises: UserError with Transformer Engine's reason where there is none."""
        return _ask(self, must_be_deterministic())

    def question(self, in_order: bool) -> dict[str, Any]:
        """What Transformer Engine wants to know, to name its kernels."""
        names, number, mask = load_transformer_engine().fused, load_transformer_engine().dtypes[self.dtype], self.mask()
        left, right = mask["window_size"]
        (heads, key_heads, dim), problems = self.heads, self.problems
        ragged = {} if problems.equal else {"num_tokens_q": sum(problems.queries), "num_tokens_kv": sum(problems.keys)}
        return {
            "deterministic": in_order,
            "attn_mask_type": names.AttnMaskType[mask["attn_mask_type"]],
            "window_size_left": left,
            "window_size_right": right,
            "bottom_right_diagonal": mask["attn_mask_type"] not in ("causal", "padding_causal"),
            "attn_scale": self.scale,
            **dict.fromkeys(("qkv_dtype", "o_dtype", "do_dtype", "dqkv_dtype"), number),
            **dict.fromkeys(("qkv_layout", "dqkv_layout"), names.QKVLayout[self.layout]),
            **dict.fromkeys(("o_format", "do_format"), names.QKVFormat[self.format]),
            "batch_size": len(problems),
            "num_attn_heads": heads,
            "num_gqa_groups": key_heads,
            "head_dim_qk": dim,
            "head_dim_v": dim,
            "max_seqlen_q": max(problems.queries),
            "max_seqlen_kv": max(problems.keys),
            **ragged,
        }


@lru_cache(maxsize=64)
def _ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """[problems + 1] int32: where each starts and ends."""
    with torch.inference_mode(False):
        return copy_to_device(torch.tensor((0, *lengths)).cumsum(0).int(), device)


@lru_cache(maxsize=64)
def _ask(call: TransformerEngineCall, in_order: bool) -> Any:
    names = load_transformer_engine().fused
    kind, reason = names.tex.get_fused_attn_backend(load_transformer_engine().parameters(**call.question(in_order)))
    if names.FusedAttnBackend.cast(kind) == names.FusedAttnBackend.No_Backend:
        (heads, _, dim), queries, keys = call.heads, call.problems.queries, call.problems.keys
        shape = f"{len(queries)} x {max(queries)} queries over {max(keys)} keys, {heads} heads of {dim}, {call.mask()}"
        raise UserError(f"Transformer Engine has no kernel for {shape}: {reason}", "what cuDNN supports", NEXT)
    return names.FusedAttnBackend.cast(kind)


def must_be_deterministic() -> bool:
    """Whether sums have a fixed order, asked as Transformer Engine asks."""
    allowed = os.environ.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1") != "0"
    return not allowed or torch.are_deterministic_algorithms_enabled()
