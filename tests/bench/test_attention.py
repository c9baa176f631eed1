"""Every alternative of the attention benchmark computes what it is said to."""

from dataclasses import replace
from statistics import median

import pytest
import torch
from torch import Tensor

from nld_train.attention import reference
from nld_train.attention.backends import BACKENDS
from nld_train.bench import attention
from nld_train.bench.attention import (
    CAUSAL,
    ORACLE,
    OURS,
    attention_pair_flops,
    bench_attention,
    causal_ceilings,
    dense_sdpa_step,
    halves_as_rows,
    our_backends,
    repeat_key_heads,
)
from nld_train.bench.inputs import AttentionInputs, AttentionShape, draw_attention_inputs
from nld_train.bench.measure import Effort
from nld_train.bench.outcome import outcome_markdown
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_table
from nld_train.errors import UserError

CPU = torch.device("cpu")
SHAPE = AttentionShape(48, 16, 1, 4, 2, 16)


def inputs(positions: int | None = None) -> AttentionInputs:
    return draw_attention_inputs(SHAPE, torch.float64, CPU, torch.Generator().manual_seed(3), positions=positions)


def reference_gradients(given: AttentionInputs, layout: RowLayout) -> tuple[Tensor, ...]:
    return given.gradients(reference.attend_reference(*given.leaves, MaskSpec(layout), given.scale))


def test_ours_and_dense_give_the_references_gradients() -> None:
    given = inputs()
    wanted = reference_gradients(given, SHAPE.layout)
    sdpa = next(one for one in our_backends(SHAPE, given) if one.name == f"{OURS}sdpa")
    for step in (sdpa.prepare(), dense_sdpa_step(SHAPE, given)):
        for got, expected in zip(step(), wanted, strict=True):
            torch.testing.assert_close(got, expected)


def test_packed_documents_are_kept_apart_and_counted() -> None:
    packed = replace(SHAPE, rows=2, documents=4)
    given = draw_attention_inputs(packed, torch.float64, CPU, torch.Generator().manual_seed(3))
    spec = MaskSpec.from_documents(packed.layout, given.documents)
    wanted = given.gradients(reference.attend_reference(*given.leaves, spec, given.scale))
    sdpa = next(one for one in our_backends(packed, given) if one.name == f"{OURS}sdpa")
    for step in (sdpa.prepare(), dense_sdpa_step(packed, given)):
        for got, expected in zip(step(), wanted, strict=True):
            torch.testing.assert_close(got, expected)
    pairs = int(visible_table(packed.layout, given.documents).sum())
    assert sdpa.useful == attention_pair_flops(packed, pairs / 2)


def test_the_ceiling_is_two_causal_rows() -> None:
    given = inputs(2 * SHAPE.length)
    step = causal_ceilings(SHAPE, given)[0].prepare()
    for got, whole in zip(step(), given.leaves, strict=True):
        assert got.shape == (2, whole.shape[1], SHAPE.length, SHAPE.head_dim)
    layout = RowLayout(SHAPE.length, SHAPE.block_size, dual=False)
    first = AttentionInputs(
        *(part.detach()[:, :, : SHAPE.length].requires_grad_() for part in given.leaves), *rest(given)
    )
    for got, expected in zip(step(), reference_gradients(first, layout), strict=True):
        torch.testing.assert_close(got[:1], expected)


def rest(given: AttentionInputs) -> tuple[Tensor, float]:
    return given.cotangent[:, :, : SHAPE.length], given.scale


def test_halves_are_rows_of_their_own_with_positions_apart() -> None:
    part = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    rows = halves_as_rows(part)
    assert torch.equal(rows, torch.cat([part[:, :, :2], part[:, :, 2:]]))
    assert rows.permute(2, 0, 1, 3).is_contiguous()


def test_a_key_head_for_every_query_head_is_the_same_attention() -> None:
    given = inputs()
    each = repeat_key_heads(given)
    assert each.key.shape == each.query.shape
    grouped, apart = (reference_gradients(one, SHAPE.layout) for one in (given, each))
    torch.testing.assert_close(apart[0], grouped[0])
    for one, whole in zip(apart[1:], grouped[1:], strict=True):
        torch.testing.assert_close(one.unflatten(1, (SHAPE.kv_heads, -1)).sum(2), whole)


def test_flops_count_the_pairs_that_see_each_other() -> None:
    assert attention_pair_flops(SHAPE, 10) == 3 * 2 * (2 * 16) * 10 * 4
    dual, causal = SHAPE.layout.visible_pairs, 2 * RowLayout(48, 16, dual=False).visible_pairs
    assert dual == pytest.approx(causal, rel=0.2)


def test_the_table_has_a_line_for_every_way_and_a_reason_for_those_that_did_not_run() -> None:
    found = bench_attention(SHAPE, torch.float32, Effort(2, 1, budget=60), CPU, profiled=True)
    results = found.figures["results"]
    assert {f"{OURS}{name}" for name in BACKENDS if name != ORACLE} < set(results)
    limits = [one for name, one in results.items() if name.startswith(CAUSAL) and one["seconds"]]
    assert found.figures["ceiling"] == max(one["useful"] / median(one["seconds"]) for one in limits)
    text = outcome_markdown(found)
    for name, one in results.items():
        assert f"| {name}" in text
        assert bool(one["seconds"]) != (f"{name} did not run: " in text)
    assert not results[f"{OURS}flex"]["seconds"]
    assert f"{OURS}sdpa, one step:" in text and "ms in all" in text


def test_megatron_bridges_attention_says_what_it_lacks_here() -> None:
    alternative = attention.other_implementations(SHAPE, inputs())[1]
    with pytest.raises(UserError, match="no Megatron here|no backward on the CPU"):
        alternative.prepare()
