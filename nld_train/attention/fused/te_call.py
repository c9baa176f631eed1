"""A piece of the row in Transformer Engine's terms: shapes, formats, masks, lengths, and which kernels there are."""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nld_train.attention.fused.kernel import QKV, Segments, Window
from nld_train.dual_stream.mask_spec import copy_to_device
from nld_train.errors import UserError

EQUAL, RAGGED = "bshd", "thd"  # formats: for segments of one shape, and for segments of any shapes
NEXT = "set train.attention=flex"


@dataclass(frozen=True)
class TransformerEngineModules:
    """The parts of Transformer Engine that are used."""

    fused: Any  # the module of fused_attn_fwd, fused_attn_bwd and the names of their settings
    attention: Any  # the package of DotProductAttention
    parameters: Any  # the class of the question for a kernel
    dtypes: Any  # a map from torch's dtypes to Transformer Engine's


@lru_cache
def load_transformer_engine() -> TransformerEngineModules:
    """Transformer Engine, imported on first use: the import takes seconds, and torch has to be imported before."""
    from transformer_engine.pytorch import constants  # type: ignore[import-untyped]
    from transformer_engine.pytorch.attention import dot_product_attention  # type: ignore[import-untyped]
    from transformer_engine.pytorch.attention.dot_product_attention import utils  # type: ignore[import-untyped]
    from transformer_engine.pytorch.cpp_extensions import fused_attn  # type: ignore[import-untyped]

    return TransformerEngineModules(fused_attn, dot_product_attention, utils.FusedAttentionParams, constants.TE_DType)


@dataclass(frozen=True)
class TransformerEngineCall:
    """A piece in Transformer Engine's terms. Hashable: answers about kernels are cached by it."""

    segments: Segments
    window: Window
    scale: float
    heads: tuple[int, int, int]  # N, M, D
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of_piece(qkv: QKV, segments: Segments, window: Window, scale: float) -> "TransformerEngineCall":
        """The call for query [T, N, D]; key, value [U, M, D]."""
        heads = (qkv.query.shape[1], *qkv.key.shape[1:])
        return TransformerEngineCall(segments, window, scale, heads, qkv.query.dtype, qkv.query.device)

    @property
    def format(self) -> str:
        """The layout of one tensor: batch, sequence, head, dim; or tokens, head, dim."""
        return EQUAL if self.segments.same_shape else RAGGED

    @property
    def layout(self) -> str:
        """The layouts of query, key and value."""
        return "_".join([self.format] * 3)

    def to_kernel_layout(self, x: Tensor) -> Tensor:
        """[T, N, D] as the kernel reads it, contiguous: [P, T / P, N, D] for P segments of one shape."""
        return x.contiguous().unflatten(0, (len(self.segments), -1)) if self.segments.same_shape else x.contiguous()

    def from_statistics(self, stats: Tensor) -> Tensor:
        """The lse [N, T] from the kernel's [P, N, Q, 1] or [T, N, 1]. Raises: UserError for an old cuDNN's layout."""
        if self.segments.same_shape:
            return stats.squeeze(-1).transpose(0, 1).flatten(1)
        if stats.dim() != 3:
            asked = f"softmax statistics of shape {list(stats.shape)} for packed documents"
            raise UserError(f"cuDNN is too old: {asked}", "cuDNN 9.6 or newer", NEXT)
        return stats.squeeze(-1).transpose(0, 1)

    def to_statistics(self, lse: Tensor) -> Tensor:
        """The opposite of `from_statistics`: [P, N, Q, 1] or [T, N, 1] from the lse [N, T], contiguous."""
        if self.segments.same_shape:
            lse = lse.unflatten(1, (len(self.segments), -1))
        return lse.transpose(0, 1).contiguous()[..., None]

    def lengths(self) -> tuple[int, int, Tensor, Tensor]:
        """The longest segment of queries and of keys, and where the segments start and end: both [P + 1] int32."""
        queries, keys = self.segments.queries, self.segments.keys
        return max(queries), max(keys), _ends(queries, self.device), _ends(keys, self.device)

    def ragged_lengths(self) -> dict[str, Any]:
        """The lengths that DotProductAttention is told; for segments of one shape the shapes of the tensors say all."""
        if self.segments.same_shape:
            return {}
        longest_query, longest_key, query_ends, key_ends = self.lengths()
        return {
            "cu_seqlens_q": query_ends,
            "cu_seqlens_kv": key_ends,
            "max_seqlen_q": longest_query,
            "max_seqlen_kv": longest_key,
            "pad_between_seqs": False,  # or it would wait for the device, to read the ends
        }

    def mask(self) -> dict[str, Any]:
        """The mask's name and window. window_size = (left, right) is `Window`'s, with -1 for no bound.

        A window needs both bounds, or a causal mask. Names that start with "padding" stand for segments of several
        lengths; there is no padding here.
        """
        left, right = self.window.left, self.window.right
        padding = () if self.segments.same_shape else ("padding",)
        if right == 0:
            name = "_".join([*padding, "causal" if self.segments.all_square else "causal_bottom_right"])
            return {"attn_mask_type": name, "window_size": (-1 if left is None else left, 0)}
        assert right is None, f"{self.window}: no piece has such a window"
        window = (-1, -1) if left is None else (left, max(self.segments.queries))
        return {
            "attn_mask_type": "".join(padding) or "no_mask",
            "window_size": window,
            "bottom_right_diagonal": True,
        }

    def kernel_settings(self) -> dict[str, Any]:
        """The settings that the forward and the backward kernel share."""
        settings = {"attn_scale": self.scale, "qkv_layout": self.layout, **self.mask()}
        if not self.segments.same_shape:
            _, _, query_ends, key_ends = self.lengths()
            settings |= {"cu_seqlens_q_padded": query_ends, "cu_seqlens_kv_padded": key_ends}  # there is no padding
        return settings

    def sub_backend(self) -> Any:
        """The cuDNN kernel family for this piece. Raises: UserError with Transformer Engine's reason for none."""
        return _ask(self, must_be_deterministic())

    def backend_query(self, in_order: bool) -> dict[str, Any]:
        """What Transformer Engine has to know to name its kernel. in_order: sums must have a fixed order."""
        names, number, mask = load_transformer_engine().fused, load_transformer_engine().dtypes[self.dtype], self.mask()
        left, right = mask["window_size"]
        (heads, key_heads, dim), segments = self.heads, self.segments
        tokens = {"num_tokens_q": sum(segments.queries), "num_tokens_kv": sum(segments.keys)}
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
            "batch_size": len(segments),
            "num_attn_heads": heads,
            "num_gqa_groups": key_heads,
            "head_dim_qk": dim,
            "head_dim_v": dim,
            "max_seqlen_q": max(segments.queries),
            "max_seqlen_kv": max(segments.keys),
            **({} if segments.same_shape else tokens),
        }


@lru_cache(maxsize=64)
def _ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where segments of these lengths start and end: [P + 1] int32."""
    with torch.inference_mode(False):
        return copy_to_device(torch.tensor((0, *lengths)).cumsum(0).int(), device)


@lru_cache(maxsize=64)
def _ask(call: TransformerEngineCall, in_order: bool) -> Any:
    """Transformer Engine's kernel for the call. Raises: UserError with its reason where there is none."""
    names = load_transformer_engine().fused
    kind, reason = names.tex.get_fused_attn_backend(
        load_transformer_engine().parameters(**call.backend_query(in_order))
    )
    if names.FusedAttnBackend.cast(kind) == names.FusedAttnBackend.No_Backend:
        (heads, _, dim), queries, keys = call.heads, call.segments.queries, call.segments.keys
        shape = f"{len(queries)} x {max(queries)} queries over {max(keys)} keys, {heads} heads of {dim}, {call.mask()}"
        raise UserError(f"Transformer Engine has no kernel for {shape}: {reason}", "what cuDNN supports", NEXT)
    return names.FusedAttnBackend.cast(kind)


def must_be_deterministic() -> bool:
    """Whether sums must have a fixed order, by the settings that Transformer Engine itself goes by."""
    allowed = os.environ.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1") != "0"
    return not allowed or torch.are_deterministic_algorithms_enabled()
