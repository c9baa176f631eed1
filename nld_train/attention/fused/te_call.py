"""A piece of the row in Transformer Engine's terms: shapes, formats, masks, lengths, and which kernels there are."""

import os
from dataclasses import dataclass
from functools import cache, lru_cache
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
    """A piece in Transformer Engine's terms."""

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
        return EQUAL if self.segments.one_fixed_shape else RAGGED

    @property
    def layout(self) -> str:
        """The layouts of query, key and value."""
        return "_".join([self.format] * 3)

    def to_kernel_layout(self, x: Tensor) -> Tensor:
        """[T, N, D] as the kernel reads it, contiguous: [P, T / P, N, D] for P segments of one shape."""
        return (
            x.contiguous().unflatten(0, (len(self.segments), -1)) if self.segments.one_fixed_shape else x.contiguous()
        )

    def from_statistics(self, stats: Tensor) -> Tensor:
        """The lse [N, T] from the kernel's [P, N, Q, 1] or [T, N, 1]. Raises: UserError for an old cuDNN's layout."""
        if self.segments.one_fixed_shape:
            return stats.squeeze(-1).transpose(0, 1).flatten(1)
        if stats.dim() != 3:
            asked = f"softmax statistics of shape {list(stats.shape)} for packed documents"
            raise UserError(f"cuDNN is too old: {asked}", "cuDNN 9.6 or newer", NEXT)
        return stats.squeeze(-1).transpose(0, 1)

    def to_statistics(self, lse: Tensor) -> Tensor:
        """The opposite of `from_statistics`: [P, N, Q, 1] or [T, N, 1] from the lse [N, T], contiguous."""
        if self.segments.one_fixed_shape:
            lse = lse.unflatten(1, (len(self.segments), -1))
        return lse.transpose(0, 1).contiguous()[..., None]

    @property
    def longest(self) -> tuple[int, int]:
        """No segment has more queries, and none more keys: the most there are; of ragged segments, rounded up."""
        most = max(self.segments.queries), max(self.segments.keys)
        return most if self.segments.one_fixed_shape else (size_class(most[0]), size_class(most[1]))

    def lengths(self) -> tuple[int, int, Tensor, Tensor]:
        """`longest`, and where the segments start and end: both [P + 1] int32."""
        return (
            *self.longest,
            segment_ends(self.segments.queries, self.device),
            segment_ends(self.segments.keys, self.device),
        )

    def mask(self) -> dict[str, Any]:
        """The mask's name and window. window_size = (left, right) is `Window`'s, with -1 for no bound.

        A window needs both bounds, or a causal mask. Names that start with "padding" stand for segments of several
        lengths; there is no padding here.
        """
        left, right = self.window.left, self.window.right
        padding = () if self.segments.one_fixed_shape else ("padding",)
        if right == 0:
            name = "_".join([*padding, "causal" if self.segments.all_square else "causal_bottom_right"])
            return {"attn_mask_type": name, "window_size": (-1 if left is None else left, 0)}
        assert right is None, f"{self.window}: no piece has such a window"
        window = (-1, -1) if left is None else (left, self.longest[0])
        return {
            "attn_mask_type": "".join(padding) or "no_mask",
            "window_size": window,
            "bottom_right_diagonal": True,
        }

    def kernel_settings(self) -> dict[str, Any]:
        """The settings that the forward and the backward kernel share."""
        settings = {"attn_scale": self.scale, "qkv_layout": self.layout, **self.mask()}
        if not self.segments.one_fixed_shape:
            _, _, query_ends, key_ends = self.lengths()
            settings |= {"cu_seqlens_q_padded": query_ends, "cu_seqlens_kv_padded": key_ends}  # there is no padding
        return settings

    def sub_backend(self) -> Any:
        """The cuDNN kernel family for this piece. Raises: UserError with Transformer Engine's reason for none."""
        return _ask(self.question(), must_be_deterministic())

    def question(self) -> "KernelQuestion":
        """What the answer about a kernel depends on."""
        segments, mask = self.segments, self.mask()
        counts = len(segments), sum(segments.queries), sum(segments.keys)
        if not segments.one_fixed_shape:
            counts = size_class(counts[0]), size_class(counts[1]), size_class(counts[2])
        return KernelQuestion(
            mask["attn_mask_type"],
            mask["window_size"],
            self.scale,
            self.heads,
            self.dtype,
            self.format,
            self.longest,
            counts,
        )


@dataclass(frozen=True)
class KernelQuestion:
    """A piece as far as Transformer Engine's choice of a kernel depends on it. Hashable: answers are cached by it.

    Of ragged segments it holds classes of sizes, rounded up: Transformer Engine, too, builds its graphs of ragged
    segments for classes of their number and their tokens. So packed documents, whose lengths are new in every batch,
    ask a handful of questions in a whole run.
    """

    mask: str
    window: tuple[int, int]  # left and right, -1 for no bound
    scale: float
    heads: tuple[int, int, int]  # N, M, D
    dtype: torch.dtype
    format: str
    longest: tuple[int, int]  # queries and keys of a segment, at most
    counts: tuple[int, int, int]  # segments; queries and keys in all

    def in_words(self, in_order: bool) -> dict[str, Any]:
        """The question as Transformer Engine takes it. in_order: sums must have a fixed order."""
        names, number = load_transformer_engine().fused, load_transformer_engine().dtypes[self.dtype]
        heads, key_heads, dim = self.heads
        segments, query_tokens, key_tokens = self.counts
        return {
            "deterministic": in_order,
            "attn_mask_type": names.AttnMaskType[self.mask],
            "window_size_left": self.window[0],
            "window_size_right": self.window[1],
            "bottom_right_diagonal": self.mask not in ("causal", "padding_causal"),
            "attn_scale": self.scale,
            **dict.fromkeys(("qkv_dtype", "o_dtype", "do_dtype", "dqkv_dtype"), number),
            **dict.fromkeys(("qkv_layout", "dqkv_layout"), names.QKVLayout["_".join([self.format] * 3)]),
            **dict.fromkeys(("o_format", "do_format"), names.QKVFormat[self.format]),
            "batch_size": segments,
            "num_attn_heads": heads,
            "num_gqa_groups": key_heads,
            "head_dim_qk": dim,
            "head_dim_v": dim,
            "max_seqlen_q": self.longest[0],
            "max_seqlen_kv": self.longest[1],
            **({"num_tokens_q": query_tokens, "num_tokens_kv": key_tokens} if self.format == RAGGED else {}),
        }


def size_class(count: int) -> int:
    """The power of two that is no less than `count`, which is at least 1."""
    return 1 << (count - 1).bit_length()


@lru_cache(maxsize=64)
def segment_ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where segments of these lengths start and end: [P + 1] int32."""
    with torch.inference_mode(False):
        return copy_to_device(torch.tensor((0, *lengths)).cumsum(0).int(), device)


@cache  # of classes there are few, and one that was forgotten would be asked again and again
def _ask(question: KernelQuestion, in_order: bool) -> Any:
    """Transformer Engine's kernel for the question. Raises: UserError with its reason where there is none."""
    names = load_transformer_engine().fused
    kind, reason = names.tex.get_fused_attn_backend(load_transformer_engine().parameters(**question.in_words(in_order)))
    if names.FusedAttnBackend.cast(kind) == names.FusedAttnBackend.No_Backend:
        (heads, _, dim), (queries, keys) = question.heads, question.longest
        seen = f"{question.mask}, window {question.window}"
        shape = f"{question.counts[0]} x {queries} queries over {keys} keys, {heads} heads of {dim}, {seen}"
        raise UserError(f"Transformer Engine has no kernel for {shape}: {reason}", "what cuDNN supports", NEXT)
    return names.FusedAttnBackend.cast(kind)


def must_be_deterministic() -> bool:
    """Whether sums must have a fixed order, by the settings that Transformer Engine itself goes by."""
    allowed = os.environ.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1") != "0"
    return not allowed or torch.are_deterministic_algorithms_enabled()
