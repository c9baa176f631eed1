"""Backend "fa3". On the CPU: its calls on a stand-in of the library, and that they are the calls that Transformer
Engine makes. The library itself wants a Hopper GPU."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nld_train.attention.fused import fa3
from nld_train.attention.fused.kernel import CAUSAL, QKV, MergedResult, PlainKernel, Segments, Window
from nld_train.dual_stream.row_layout import RowLayout
from tests.attention.conftest import FUSED_LAYOUTS

PLAIN = PlainKernel()


def read_call(qkv: QKV, ends: tuple[Tensor, Tensor], longest: tuple[int, int], words: dict, causal: bool):
    """Segments and window of a call, which must be as a kernel reads it."""
    assert all(x.is_contiguous() and x.dim() == 3 for x in qkv) and qkv.query.shape[1] % qkv.key.shape[1] == 0
    assert all(each.dtype == torch.int32 for each in ends)
    queries, keys = (tuple(each.diff().tolist()) for each in ends)
    assert (sum(queries), sum(keys)) == (len(qkv.query), len(qkv.key)) and min(queries) > 0
    assert longest == (max(queries), max(keys))
    left, right = (
        None if words[f"window_size_{side}"] == -1 else words[f"window_size_{side}"] for side in ("left", "right")
    )
    assert causal == (left is None and right == 0)
    return Segments(queries, keys), Window(left, right)


def forward(q, k, v, k_new, v_new, qv, out, cu_q, cu_k, cu_new, used_q, used_k, most_q, most_k, *unused, **words: Any):
    """_flash_attn_forward by the positions of Transformer Engine's call."""
    assert all(x is None for x in (k_new, v_new, qv, out, cu_new, used_q, used_k, *unused)) and len(unused) == 9
    segments, window = read_call(QKV(q, k, v), (cu_q, cu_k), (most_q, most_k), words, words["causal"])
    return *PLAIN.forward(QKV(q, k, v), segments, window, words["softmax_scale"]), None, None


def backward(d_out, q, k, v, out, lse, cu_q, cu_k, used_q, used_k, most_q, most_k, d_q, d_k, d_v, **words: Any):
    """_flash_attn_backward by the positions of Transformer Engine's call: it fills the gradients."""
    assert used_q is None and used_k is None and words["deterministic"] is False
    assert d_out.is_contiguous() and out.is_contiguous() and lse.is_contiguous() and lse.shape == (q.shape[1], len(q))
    segments, window = read_call(QKV(q, k, v), (cu_q, cu_k), (most_q, most_k), words, words["is_causal"])
    parts = PLAIN.backward(QKV(q, k, v), MergedResult(out, lse, d_out), segments, window, words["softmax_scale"])
    for gradient, part in zip((d_q, d_k, d_v), parts, strict=True):
        gradient.copy_(part)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The library's two functions in plain torch, which keep what they were called with."""
    calls: dict[str, Any] = {}

    def kept(name: str, function: Any) -> Any:
        def call(*places: Any, **words: Any) -> Any:
            calls[name] = (places, words)
            return function(*places, **words)

        return call

    found = SimpleNamespace(
        _flash_attn_forward=kept("forward", forward), _flash_attn_backward=kept("backward", backward), calls=calls
    )
    monkeypatch.setattr(fa3, "load_flash_attention_3", lambda: found)
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("layout", FUSED_LAYOUTS, ids=str)
def test_calls_the_library_so_that_it_equals_the_reference(case, library, layout: RowLayout, packed: bool) -> None:
    case(layout, packed=packed).assert_equals_reference(fa3.attend_fa3)


def test_on_two_context_ranks(case, library) -> None:
    case(RowLayout(24, 3, True)).assert_equals_on_context_ranks(fa3.attend_fa3)


# What Transformer Engine gives its own calls behind the tensors, with a name in the place of every value.
ASK = """
import json, torch
from transformer_engine.pytorch.attention.dot_product_attention.context_parallel import get_fa_args
ends = dict(cu_seqlens_q="ends of queries", cu_seqlens_kv="ends of keys", max_seqlen_q=5, max_seqlen_kv=7)
gradients = dict(dq="dq", dk="dk", dv="dv")
print(json.dumps([get_fa_args(True, True, "thd", **ends), get_fa_args(False, True, "thd", **ends, **gradients)]))
"""


@pytest.mark.slow
def test_the_calls_are_those_of_transformer_engine(library) -> None:
    """Its own list of arguments, asked in a process of its own: 10 s to import, no GPU needed."""
    run = subprocess.run([sys.executable, "-c", ASK], check=True, capture_output=True, text=True)
    theirs = dict(zip(("forward", "backward"), json.loads(run.stdout.splitlines()[-1]), strict=True))
    segments, kernel = Segments((5, 2), (7, 3)), fa3.FlashAttention3Kernel()
    qkv = QKV(torch.randn(7, 4, 8), torch.randn(10, 2, 8), torch.randn(10, 2, 8))
    output, lse = kernel.forward(qkv, segments, CAUSAL, 0.3)
    gradients = kernel.backward(qkv, MergedResult(output, lse, output), segments, CAUSAL, 0.3)
    for name, tensors in (("forward", 3), ("backward", 6)):
        places, words = library.calls[name]
        named = [_named(x, gradients) for x in places[tensors:]]
        assert named == theirs[name]
        assert words.keys() - {"deterministic", "causal", "is_causal"} == {
            "softmax_scale", "window_size_left", "window_size_right"
        }  # fmt: skip
    assert [x.shape for x in library.calls["backward"][0][:6]] == [
        (7, 4, 8),
        (7, 4, 8),
        (10, 2, 8),
        (10, 2, 8),
        (7, 4, 8),
        (4, 7),
    ]


def _named(value: object, gradients: QKV) -> object:
    """A value of a call as ASK names it."""
    if not isinstance(value, Tensor):
        return value
    for name, gradient in zip(("dq", "dk", "dv"), gradients, strict=True):
        if value is gradient:
            return name
    return {7: "ends of queries", 10: "ends of keys"}[int(value[-1])]
