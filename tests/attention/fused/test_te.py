"""Backend "te". On the CPU: its arithmetic (test_lse_merge.py), its calls on a stand-in, their signatures on the real
library. On a GPU: outputs and gradients against float64.
"""

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import cudnn
import pytest
import torch

from nld_train.attention.backends import BackendRequest, choose_backend
from nld_train.attention.fused import te, te_call
from nld_train.attention.fused.kernel import CAUSAL, Segments, Window
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.errors import UserError
from tests.attention import stand_in
from tests.attention.conftest import FUSED_LAYOUTS
from tests.attention.cudnn_graph import Graph

WAYS = {
    "te": te.attend_te,
    "te+near_flex": te.attend_te_local_flex,
    "te+flex": te.attend_te_noisy_flex,
    "te+mod": te.attend_te_score_mod,
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch):
    """Transformer Engine's interfaces in plain torch."""
    found = te_call.TransformerEngineModules(stand_in.fused, stand_in.attention, SimpleNamespace, stand_in.Named())
    monkeypatch.setattr(te_call, "load_transformer_engine", lambda: found)
    for cache in (te_call._ask, te._dot_product_attention):
        cache.cache_clear()
    yield found
    for cache in (te_call._ask, te._dot_product_attention):
        cache.cache_clear()


@pytest.mark.parametrize("layout", FUSED_LAYOUTS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_calls_the_library_so_that_it_equals_the_reference(
    case, library, cpu_backward, way: str, layout: RowLayout
) -> None:
    case(layout).assert_equals_reference(WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_on_two_context_ranks(case, library, cpu_backward, way: str) -> None:
    case(RowLayout(24, 3, True)).assert_equals_on_context_ranks(WAYS[way])


@pytest.mark.parametrize("layout", FUSED_LAYOUTS, ids=str)
@pytest.mark.parametrize("way", ["te", "te+near_flex", "te+flex"])
def test_packed_documents_are_problems_of_any_length(case, library, cpu_backward, way: str, layout: RowLayout) -> None:
    case(layout, packed=True).assert_equals_reference(WAYS[way])


def test_new_document_lengths_ask_for_no_new_kernels(library, monkeypatch) -> None:
    """Forty batches, every one of other lengths; some of them have a single document that is longer than a block."""
    asked = []

    def count(parameters: SimpleNamespace) -> tuple[int, str]:
        asked.append(parameters)
        return stand_in.get_fused_attn_backend(parameters)

    monkeypatch.setattr(stand_in.fused.tex, "get_fused_attn_backend", count)
    monkeypatch.setattr(stand_in.attention, "DotProductAttention", None)  # it would choose anew at every call
    layout, draw = RowLayout(96, 4, True), torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, heads, 192, 16, generator=draw) for heads in (4, 2, 2))
    seen = set()
    for batch in range(40):
        cuts = torch.randperm(90, generator=draw)[: 1 + batch % 8]
        starts = torch.zeros(96, dtype=torch.int64).index_fill_(0, cuts + 3, 1)
        spec = MaskSpec.from_documents(layout, starts.cumsum(0)[None])
        seen.add(spec.documents)
        te.attend_te(query, key, value, spec, 0.3)
    assert len(seen) == 40
    assert len(asked) <= 30, "few classes of sizes, in place of three questions a batch"
    assert len({str(one) for one in asked}) == len(asked), "no question is asked twice"


def test_a_class_holds_every_size_of_its_batches() -> None:
    assert [te_call.size_class(count) for count in (1, 2, 3, 4, 5, 4096, 4097)] == [1, 2, 4, 4, 8, 4096, 8192]
    segments = Segments((5, 3, 9), (5, 3, 12), of_documents=True)
    call = te_call.TransformerEngineCall(segments, Window(3), 1.0, (4, 2, 8), torch.bfloat16, torch.device("cpu"))
    assert (call.longest, call.question().counts) == ((16, 16), (4, 32, 32))


def test_packed_documents_are_refused_where_there_is_no_way(case, library) -> None:
    with pytest.raises(UserError, match=r"te\+mod with packed documents"):
        choose_backend(BackendRequest("te+mod", "cuda", torch.bfloat16, 128, training=True, packed=True))
    c = case(RowLayout(12, 4, True), packed=True)
    with pytest.raises(AssertionError, match="refuse_packed_documents"):
        te.attend_te_score_mod(c.query, c.key, c.value, c.spec, c.scale)


def test_statistics_of_an_old_cudnn_are_refused(case, library, monkeypatch) -> None:
    """Padded to the longest problem, where newer ones write them query by query."""
    c = case(RowLayout(12, 4, True), packed=True)
    monkeypatch.setattr(stand_in.fused, "fused_attn_fwd", lambda *given, **_: (given[5], [torch.empty(3, 4, 12, 1)]))
    with pytest.raises(UserError, match=r"cuDNN is too old.*\[3, 4, 12, 1\].*9\.6"):
        te.attend_te(c.query, c.key, c.value, c.spec, c.scale)


def test_what_the_library_cannot_do_is_refused_with_its_reason(case, library) -> None:
    c = case(RowLayout(12, 4, True), dim=24)
    with pytest.raises(
        UserError, match="no kernel for .* over 4 keys, 8 heads of 24.*: head_dim 24.*train.attention=flex"
    ):
        te.attend_te(c.query, c.key, c.value, c.spec, c.scale)


def test_plain_torch_inside_the_library_is_refused(case, library, monkeypatch) -> None:
    monkeypatch.setitem(stand_in.attention._attention_backends, "use_unfused_attention", True)
    c = case(RowLayout(12, 4, False))
    with pytest.raises(UserError, match="no fused kernel for the clean half: the parameters"):
        te.attend_te(c.query, c.key, c.value, c.spec, c.scale)


@pytest.mark.parametrize(
    ("window", "queries", "keys", "words"),
    [
        (CAUSAL, (8,), (8,), ("causal", (-1, 0))),
        (CAUSAL, (8,), (12,), ("causal_bottom_right", (-1, 0))),
        (CAUSAL, (8, 3), (8, 3), ("padding_causal", (-1, 0))),
        (Window(), (8,), (8,), ("no_mask", (-1, -1))),
        (Window(3), (4, 4), (8, 8), ("no_mask", (3, 4))),
        (Window(3), (4, 2), (4, 6), ("padding", (3, 4))),
        (Window(3, 0), (4,), (8,), ("causal_bottom_right", (3, 0))),
        (Window(3, 0), (4, 2), (4, 6), ("padding_causal_bottom_right", (3, 0))),
    ],
    ids=str,
)
def test_windows_in_the_librarys_words(window: Window, queries: tuple, keys: tuple, words: tuple) -> None:
    call = te_call.TransformerEngineCall(
        Segments(queries, keys), window, 1.0, (1, 1, 1), torch.bfloat16, torch.device("cpu")
    )
    mask = call.mask()
    assert (mask["attn_mask_type"], mask["window_size"]) == words
    for n, m in zip(queries, keys, strict=True):
        assert torch.equal(stand_in.window_of(*words).visible_table(n, m), window.visible_table(n, m))


def test_sums_in_order_are_asked_for_as_the_library_asks(monkeypatch) -> None:
    monkeypatch.delenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", raising=False)
    assert not te_call.must_be_deterministic()
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    assert te_call.must_be_deterministic()


BOTTOM_RIGHT = cudnn.diagonal_alignment.BOTTOM_RIGHT


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("segments", "queries", "keys", "window"),
    [
        (1, 4064, 4064, CAUSAL),
        (1, 1024, 3040, CAUSAL),
        (127, 32, 64, Window(31)),
        (127, 32, 64, Window(31, 0)),
        (1, 3, 35, Window(31)),
        (1, 32, 32, Window()),
    ],
    ids=str,
)
def test_cudnn_takes_the_pieces(segments: int, queries: int, keys: int, window: Window, backward: bool) -> None:
    """Such masks at such shapes, without a GPU; Transformer Engine makes graphs like this of its words."""
    Graph(segments, queries, keys).build(backward, **diagonals(window, queries))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys", "window"), [(4096, 4096, CAUSAL), (32, 64, Window(31)), (32, 64, Window(31, 0))], ids=str
)
def test_cudnn_takes_the_pieces_of_packed_documents(queries: int, keys: int, window: Window, backward: bool) -> None:
    Graph(200, queries, keys, tokens=(16_384, 32_768)).build(backward, **diagonals(window, queries))


def diagonals(window: Window, queries: int) -> dict:
    """A window in cuDNN's words."""
    if window == Window():
        return {}
    words = {"diagonal_alignment": BOTTOM_RIGHT, "diagonal_band_right_bound": queries if window.right is None else 0}
    if window.left is not None:
        words["diagonal_band_left_bound"] = window.left + 1  # cuDNN counts the level key too
    return words


def test_cudnn_refuses_a_window_it_cannot_do() -> None:
    with pytest.raises(cudnn.cudnnGraphNotSupportedError, match="max_s_q <= max_s_kv"):
        Graph(1, 64, 32).build(False, diagonal_band_left_bound=4, diagonal_band_right_bound=0)


ASK = """
import inspect, json
import torch
from nld_train.attention.fused import te_call
real = te_call.load_transformer_engine()
print(json.dumps({
    "fused_attn_fwd": list(inspect.signature(real.fused.fused_attn_fwd).parameters),
    "fused_attn_bwd": list(inspect.signature(real.fused.fused_attn_bwd).parameters),
    "asks": callable(real.fused.tex.get_fused_attn_backend),
    "made": list(inspect.signature(real.attention.DotProductAttention).parameters),
    "called": list(inspect.signature(real.attention.DotProductAttention.forward).parameters),
    "asked": list(inspect.signature(real.parameters).parameters),
    "masks": list(real.fused.AttnMaskType),
    "layouts": list(real.fused.QKVLayout),
    "formats": list(real.fused.QKVFormat),
    "chosen": list(real.attention._attention_backends),
    "no backend": int(real.fused.FusedAttnBackend.cast(real.fused.tex.NVTE_Fused_Attn_Backend.NVTE_No_Backend)),
    "dtypes": [str(dtype) for dtype in real.dtypes],
}))
"""


@pytest.mark.slow
def test_the_pinned_library_has_what_is_called(library) -> None:
    """Its names, parameters and words, in a process of its own: 10 s to import, no GPU needed."""
    run = subprocess.run([sys.executable, "-c", ASK], check=True, capture_output=True, text=True)
    real = json.loads(run.stdout.splitlines()[-1])
    for name in ("fused_attn_fwd", "fused_attn_bwd"):
        stand = inspect.signature(getattr(stand_in, name)).parameters.values()
        ours = [parameter.name for parameter in stand if parameter.kind != parameter.VAR_KEYWORD]
        assert real[name][: len(ours)] == ours
        words = {"attn_scale", "qkv_layout", "o_format", "attn_mask_type", "window_size", "bottom_right_diagonal"}
        assert words | ({"do_format", "dqkv_layout", "deterministic"} if name.endswith("bwd") else set()) <= {
            *real[name]
        }
    assert real["asks"] and real["made"][:3] == ["num_attention_heads", "kv_channels", "num_gqa_groups"]
    assert {"attention_dropout", "qkv_format", "attn_mask_type", "softmax_scale"} <= {*real["made"]}
    assert real["called"][1:4] == ["query_layer", "key_layer", "value_layer"]
    assert {"score_mod", "score_mod_tensors"} <= {*real["called"]}
    masks = {"causal", "causal_bottom_right", "no_mask"}
    assert masks | {"padding", "padding_causal", "padding_causal_bottom_right"} <= {*real["masks"]}
    assert {"bshd_bshd_bshd", "thd_thd_thd"} <= {*real["layouts"]} and {"bshd", "thd"} <= {*real["formats"]}
    assert "use_unfused_attention" in real["chosen"]
    assert real["no backend"] == -1 and {"torch.bfloat16", "torch.float16"} <= {*real["dtypes"]}
    ragged = te_call.TransformerEngineCall(
        Segments((8, 3), (8, 3)), CAUSAL, 0.1, (4, 2, 64), torch.bfloat16, torch.device("cpu")
    )
    assert ragged.question().in_words(in_order=False).keys() <= {*real["asked"]}
    assert ragged.kernel_settings().keys() <= {*real["fused_attn_fwd"]} & {*real["fused_attn_bwd"]}


@needs_gpu
@pytest.mark.parametrize("way", WAYS)
def test_on_a_gpu_every_draw_is_within_the_bounds_of_bf16(way: str) -> None:
    """Outputs and gradients on fresh inputs, 3 shapes, as `nld bench` checks them (200 draws there)."""
    from nld_train.bench.kernel_check import GPU_SHAPES, DrawSettings, check_attention_kernel
    from nld_train.bench.measure import TimeBudget

    for shape in GPU_SHAPES:
        attend = choose_backend(BackendRequest(way, "cuda", torch.bfloat16, shape.head_dim, training=True))
        for documents in (1, 4) if way != "te+mod" else (1,):
            packed = replace(shape, documents=documents)
            settings = DrawSettings(20, torch.bfloat16, torch.device("cuda"))
            found = check_attention_kernel(way, attend, packed, settings, TimeBudget(60.0))
            assert found.verdict == "ok", found
