"""Transformer Engine's interfaces as its sources document them, carried out by plain torch: what nld_train calls, with
which shapes, and what comes back. The real ones want a GPU. test_te.py holds the signatures against the real ones.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nld_train.attention.fused.kernel import QKV, MergedResult, PlainKernel, Segments, Window

PLAIN = PlainKernel()
BACKEND = 1


def window_of(attn_mask_type: str, window_size: tuple[int, int]) -> Window:
    """Who sees whom, from the words of Transformer Engine. -1: without end."""
    left, right = (None if side == -1 else side for side in window_size)
    if attn_mask_type in ("no_mask", "padding"):
        assert (left is None) == (right is None), "a window without a causal mask has both ends"
        return Window(left, right)
    assert window_size[1] == 0
    return Window(left, 0)


def check(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, int, Tensor, Tensor], words: dict) -> Segments:
    """As a kernel reads them, contiguous: bshd of segments of equal length, or thd of any."""
    layout, mask = words["qkv_layout"], words["attn_mask_type"]
    assert key.shape == value.shape and query.shape[-2] % key.shape[-2] == 0 and query.shape[-1] == key.shape[-1]
    assert all(x.is_contiguous() for x in (query, key, value)), "a kernel computes addresses from the shape"
    queries, keys = (tuple(ends.diff().tolist()) for ends in lengths[2:])
    assert lengths[0] >= max(queries) and lengths[1] >= max(keys), "a segment is longer than was said"
    assert all(ends.dtype == torch.int32 for ends in lengths[2:])
    assert min(queries) > 0, "a segment without queries"
    if layout == "thd_thd_thd":
        assert (lengths[2][-1], lengths[3][-1]) == (len(query), len(key)) and mask.startswith("padding")
        assert all(
            torch.equal(words[f"cu_seqlens_{x}_padded"], ends) for x, ends in zip(("q", "kv"), lengths[2:], strict=True)
        )
    else:
        assert layout == "bshd_bshd_bshd" and "padding" not in mask
        assert queries == (query.shape[1],) * len(query) and keys == (key.shape[1],) * len(key)
    assert words["o_format"] == layout.split("_")[0]
    if "causal" in mask:
        assert mask.endswith("_bottom_right") or queries == keys, "causal is level at the first"
    else:
        assert words["bottom_right_diagonal"], "or a window is level at the first"
    return Segments(queries, keys)


def in_line(x: Tensor) -> Tensor:
    """bshd as thd."""
    return x.flatten(0, 1) if x.dim() == 4 else x


def fused_attn_fwd(
    is_training: bool,
    max_seqlen_q: int,
    max_seqlen_kv: int,
    cu_seqlens_q: Tensor,
    cu_seqlens_kv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fake_dtype: torch.dtype,
    fused_attention_backend: int,
    **words: Any,
) -> tuple[Tensor, list[Tensor]]:
    """Returns: the output, and [softmax statistics [b, h, s, 1], generator state]."""
    assert is_training and fused_attention_backend == BACKEND and fake_dtype == q.dtype
    segments = check(q, k, v, (max_seqlen_q, max_seqlen_kv, cu_seqlens_q, cu_seqlens_kv), words)
    seen = window_of(words["attn_mask_type"], words["window_size"])
    output, lse = PLAIN.forward(QKV(*map(in_line, (q, k, v))), segments, seen, words["attn_scale"])
    if q.dim() == 4:
        lse = lse.unflatten(1, (len(q), -1))
    return output.view(q.shape), [lse.transpose(0, 1).contiguous()[..., None], torch.zeros(2, dtype=torch.int64)]


def fused_attn_bwd(
    max_seqlen_q: int,
    max_seqlen_kv: int,
    cu_seqlens_q: Tensor,
    cu_seqlens_kv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    d_o: Tensor,
    fake_dtype: torch.dtype,
    aux_ctx_tensors: list[Tensor],
    fused_attention_backend: int,
    **words: Any,
) -> tuple[Tensor | None, ...]:
    """Returns: the gradients of q, k and v, of a bias and of softmax offsets."""
    assert fused_attention_backend == BACKEND and fake_dtype == q.dtype
    assert words["do_format"] == words["o_format"] and words["dqkv_layout"] == words["qkv_layout"]
    stats, state = aux_ctx_tensors
    shape = (len(q), q.shape[2], q.shape[1], 1) if q.dim() == 4 else (*q.shape[:2], 1)
    assert stats.shape == shape and stats.is_contiguous() and state.shape == (2,)
    assert o.is_contiguous() and d_o.is_contiguous() and o.shape == d_o.shape == q.shape
    segments = check(q, k, v, (max_seqlen_q, max_seqlen_kv, cu_seqlens_q, cu_seqlens_kv), words)
    seen = window_of(words["attn_mask_type"], words["window_size"])
    lse = stats[..., 0].transpose(0, 1)
    merged = MergedResult(in_line(o), lse.flatten(1), in_line(d_o))
    parts = PLAIN.backward(QKV(*map(in_line, (q, k, v))), merged, segments, seen, words["attn_scale"])
    return *(part.view(x.shape) for part, x in zip(parts, (q, k, v), strict=True)), None, None


class DotProductAttention:
    """bshd in, the same without heads out, with autograd."""

    def __init__(self, heads: int, dim: int, groups: int, **words: Any) -> None:
        self.shape, self.words = (heads, dim, groups), words
        assert words["qkv_format"] == "bshd" and words["attention_dropout"] == 0

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        score_mod: Callable[..., Any] | None = None,
        score_mod_tensors: dict[str, Tensor] | None = None,
    ) -> Tensor:
        assert (query.shape[-2], query.shape[-1], key.shape[-2]) == self.shape
        mask, scale = self.words["attn_mask_type"], self.words["softmax_scale"]
        if score_mod is None:
            return self.causal(query, key, value, mask, scale)
        assert mask == "no_mask"
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = score_mod(TorchGraph(), q @ k.mT * scale, score_mod_tensors).as_subclass(Tensor)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def causal(self, query: Tensor, key: Tensor, value: Tensor, mask: str, scale: float) -> Tensor:
        assert mask == ("causal" if query.shape[1] == key.shape[1] else "causal_bottom_right")
        queries, keys = ((x.shape[1],) * len(x) for x in (query, key))
        segments = Segments(queries, keys)
        return PLAIN.causal(QKV(*map(in_line, (query, key, value))), segments, scale).view(query.shape).flatten(-2)


class Number(Tensor):
    """A tensor that, like one of a cuDNN graph, is told its type."""

    def set_data_type(self, _: object) -> None:
        pass


class TorchGraph:
    """The operations of a cuDNN graph that score_mod.hide_unseen_scores uses, carried out by torch."""

    def gen_index(self, input: Tensor, axis: int) -> Tensor:
        shape = [1] * input.dim()
        shape[axis] = -1
        return torch.arange(input.shape[axis]).view(shape).expand(input.shape).as_subclass(Number)

    def cmp_ge(self, input: Tensor, comparison: Tensor, **_: object) -> Tensor:
        return input >= comparison

    def cmp_le(self, input: Tensor, comparison: Tensor, **_: object) -> Tensor:
        return input <= comparison

    def logical_and(self, a: Tensor, b: Tensor, **_: object) -> Tensor:
        return a & b

    def binary_select(self, input0: Tensor, input1: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.as_subclass(Tensor), input0, input1.to(input0.dtype))


def get_fused_attn_backend(parameters: SimpleNamespace) -> tuple[int, str]:
    """Whether there is a kernel; none for heads of 24, to have one to refuse."""
    return (-1, "head_dim 24") if parameters.head_dim_qk == 24 else (BACKEND, "")


class Named(dict):
    """A table of names, which knows every one."""

    def __missing__(self, key: Any) -> Any:
        return key


fused = SimpleNamespace(
    fused_attn_fwd=fused_attn_fwd,
    fused_attn_bwd=fused_attn_bwd,
    tex=SimpleNamespace(get_fused_attn_backend=get_fused_attn_backend),
    AttnMaskType=Named(),
    QKVLayout=Named(),
    QKVFormat=Named(),
    FusedAttnBackend=SimpleNamespace(cast=int, No_Backend=-1),
)
attention = SimpleNamespace(
    DotProductAttention=DotProductAttention,
    _attention_backends={"use_unfused_attention": False, "attention_params": "the parameters"},
)
