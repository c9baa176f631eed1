"""Transformer Engine's interfaces as its sources document them, carried out by plain torch: what nld_train calls, with
which shapes, and what comes back. The real ones want a GPU. test_te.py holds the signatures against the real ones.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nld_train.attention.engine import CAUSAL, Band, PlainEngine

PLAIN = PlainEngine()
BACKEND = 1


def band(queries: int, keys: int, attn_mask_type: str, window_size: tuple[int, int]) -> Band:
    """Who sees whom, from the words of Transformer Engine. Query i is level with key i + K - Q; -1: without end."""
    left, right = (None if side == -1 else side for side in window_size)
    if attn_mask_type == "no_mask":
        assert (left is None) == (right is None), "a window without a causal mask has both ends"
        return Band(left, right)
    assert attn_mask_type == ("causal" if queries == keys else "causal_bottom_right"), "causal is level at the first"
    assert window_size[1] == 0
    return Band(left, 0)


def check(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, int, Tensor, Tensor], words: dict) -> Band:
    """As a kernel reads them: bshd, contiguous, problems of equal length."""
    problems, queries, heads, dim = query.shape
    keys = key.shape[1]
    assert key.shape == value.shape == (problems, keys, key.shape[2], dim) and heads % key.shape[2] == 0
    assert all(x.is_contiguous() for x in (query, key, value)), "a kernel computes addresses from the shape"
    ends = (torch.arange(problems + 1, dtype=torch.int32) * length for length in (queries, keys))
    assert lengths[:2] == (queries, keys)
    assert all(torch.equal(one, other) for one, other in zip(lengths[2:], ends, strict=True))
    assert words["qkv_layout"] == "bshd_bshd_bshd" and words["o_format"] == "bshd"
    return band(queries, keys, words["attn_mask_type"], words["window_size"])


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
    seen = check(q, k, v, (max_seqlen_q, max_seqlen_kv, cu_seqlens_q, cu_seqlens_kv), words)
    output, lse = PLAIN.forward(q, k, v, seen, words["attn_scale"])
    return output, [lse[..., None], torch.zeros(2, dtype=torch.int64)]


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
    assert words["do_format"] == "bshd" and words["dqkv_layout"] == "bshd_bshd_bshd"
    stats, state = aux_ctx_tensors
    assert stats.shape == (len(q), q.shape[2], q.shape[1], 1) and stats.is_contiguous() and state.shape == (2,)
    assert o.is_contiguous() and d_o.is_contiguous() and o.shape == d_o.shape == q.shape
    seen = check(q, k, v, (max_seqlen_q, max_seqlen_kv, cu_seqlens_q, cu_seqlens_kv), words)
    return *PLAIN.backward(d_o, q, k, v, o, stats[..., 0], seen, words["attn_scale"]), None, None


class DotProductAttention:
    """bshd in, [b, s, h * d] out, with autograd."""

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
        assert (query.shape[2], query.shape[3], key.shape[2]) == self.shape
        repeats = query.shape[2] // key.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
        scores = q @ k.mT * self.words["softmax_scale"]
        if score_mod is not None:
            assert self.words["attn_mask_type"] == "no_mask"
            scores = score_mod(TorchGraph(), scores, score_mod_tensors).as_subclass(Tensor)
        else:
            queries, keys = scores.shape[-2:]
            assert band(queries, keys, self.words["attn_mask_type"], (-1, 0)) == CAUSAL
            scores = scores.masked_fill(~CAUSAL.table(queries, keys), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Number(Tensor):
    """A tensor that, like one of a cuDNN graph, is told its type."""

    def set_data_type(self, _: object) -> None:
        pass


class TorchGraph:
    """The operations of a cuDNN graph that score_mod.hide uses, carried out by torch."""

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
