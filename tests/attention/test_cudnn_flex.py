"""Backend "cudnn_flex". On the CPU: its intervals, its calls on a stand-in of the library, and the library's own
signatures. On a GPU: `nld bench check`."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import cudnn.flex_attention as library
import pytest
import torch
from torch import Tensor

from nld_train.attention import cudnn_flex
from nld_train.attention.cudnn_flex import attend_cudnn_flex, key_intervals
from nld_train.dual_stream.context_shard import ContextShard
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_between
from tests.attention.conftest import FUSED_LAYOUTS


def seen_table(ends: Tensor, keys: int) -> Tensor:
    """Who sees whom by endpoints [..., 5, Q], after the library's own checks of them: [..., Q, K] bool."""
    ends = ends.long().unsqueeze(-1)
    key, found, before = torch.arange(keys), torch.zeros(1, dtype=torch.bool), torch.tensor(0)
    starts = torch.cat([0 * ends[..., :1, :, :], ends[..., 1::2, :, :]], -3)
    for begin, end in zip(starts.unbind(-3), ends[..., 0::2, :, :].unbind(-3), strict=True):
        assert ((begin >= before) & (begin <= end) & (end <= keys)).all(), "the library calls such a mask invalid"
        found, before = found | ((key >= begin) & (key < end)), end
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("layout", FUSED_LAYOUTS, ids=str)
def test_the_intervals_are_the_mask(case, layout: RowLayout, packed: bool) -> None:
    spec = case(layout, packed=packed).spec
    documents = spec.document_numbers() if packed else None
    everyone = torch.arange(layout.size)
    expected = visible_between(layout, everyone, everyone, documents)
    found = seen_table(key_intervals(spec), layout.size)
    assert torch.equal(found, expected if packed else expected[None])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("layout", [RowLayout(24, 3, True), RowLayout(24, 3, True, True)], ids=str)
def test_the_intervals_of_a_context_rank(case, layout: RowLayout, rank: int) -> None:
    shard = ContextShard(2, rank)
    spec = replace(case(layout).spec, shard=shard)
    expected = visible_between(layout, shard.queries(layout), shard.keys(layout, packed=False))
    assert torch.equal(seen_table(key_intervals(spec), spec.key_count)[0], expected)


def plan_on_the_cpu(mask_func, q, k, v, *, build_backward=None):
    """create_mask_plan as the library describes it."""
    assert mask_func.is_contiguous() and mask_func.dtype == torch.int32 and build_backward
    assert mask_func.shape == (1, 5, q.shape[0] * q.shape[1]) and k.shape == v.shape
    by_row = mask_func[0].unflatten(1, q.shape[:2]).transpose(0, 1)
    return SimpleNamespace(table=seen_table(by_row, k.shape[1]), shapes=(q.shape, k.shape))


def attention_on_the_cpu(q, k, v, *, mask_plan, softmax_scale=None, deterministic=False):
    """flex_attn_func as the library describes it: BSHD, grouped key heads."""
    assert (q.shape, k.shape) == mask_plan.shapes and q.stride(-1) == 1
    heads = q.shape[2] // k.shape[2]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(heads, 2)) * softmax_scale
    weights = scores.masked_fill(~mask_plan.table[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.repeat_interleave(heads, 2))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch):
    found = SimpleNamespace(create_mask_plan=plan_on_the_cpu, flex_attn_func=attention_on_the_cpu)
    monkeypatch.setattr(cudnn_flex, "load_cudnn_flex", lambda: found)
    cudnn_flex._mask_plan.cache_clear()
    yield found
    cudnn_flex._mask_plan.cache_clear()


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("layout", FUSED_LAYOUTS, ids=str)
def test_calls_the_library_so_that_it_equals_the_reference(case, stand_in, layout: RowLayout, packed: bool) -> None:
    case(layout, packed=packed).assert_equals_reference(attend_cudnn_flex)


def test_on_two_context_ranks(case, stand_in) -> None:
    case(RowLayout(24, 3, True)).assert_equals_on_context_ranks(attend_cudnn_flex)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(plan_on_the_cpu, library.create_mask_plan), (attention_on_the_cpu, library.flex_attn_func)],
    ids=lambda function: function.__name__,
)
def test_the_stand_ins_parameters_are_the_librarys(ours, theirs) -> None:
    known = inspect.signature(theirs).parameters
    for name, parameter in inspect.signature(ours).parameters.items():
        assert known[name].kind == parameter.kind and known[name].default == parameter.default
