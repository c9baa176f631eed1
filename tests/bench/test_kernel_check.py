"""The check of kernels finds what is wrong, and only that."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nld_train import row_arithmetic
from nld_train.attention import reference
from nld_train.attention.backends import BACKENDS, BackendRequest, choose_backend
from nld_train.bench.attention import ORACLE
from nld_train.bench.head_loss import HeadShape
from nld_train.bench.inputs import AttentionShape, draw_attention_inputs, draw_document_numbers
from nld_train.bench.kernel_check import (
    BOUNDS,
    DrawSettings,
    KernelCheckPlan,
    check_attention_kernel,
    check_head_loss,
    check_kernels,
    default_check_plan,
    expected_attention,
    relative_errors,
)
from nld_train.bench.measure import TimeBudget
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.visibility import visible_table
from nld_train.loss import lm_head

CPU = torch.device("cpu")
SHAPE = AttentionShape(96, 16, 1, 4, 2, 32)


def checked(attend, shape: AttentionShape = SHAPE, dtype: torch.dtype = torch.bfloat16, draws: int = 10):
    return check_attention_kernel("ours", attend, shape, DrawSettings(draws, dtype, CPU), TimeBudget(60))


def attend_with(change):
    """The reference, with its table of visibility changed."""

    def attend(query, key, value, spec, scale):
        table = visible_table(spec.layout, spec.documents_on(CPU)).clone()
        change(table)
        return reference.attend_dense(query, key, value, table, scale)

    return attend


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_kernels_of_this_machine_are_right(dtype: torch.dtype) -> None:
    small = KernelCheckPlan(
        (AttentionShape(45, 8, 2, 4, 2, 32),), SHAPE, (HeadShape(37, 1001, 16),), draws=4, full_draws=2, budget=60
    )
    found = check_kernels(small, dtype, CPU)
    verdicts = [one["verdict"] for one in found.figures["findings"]]
    assert not found.wrong
    assert verdicts.count("ok") == found.figures["asked"] == 4  # sdpa: plain, packed, as measured; the loss
    assert verdicts.count("refused") == len(set(BACKENDS) - {ORACLE, "sdpa"})


def test_documents_start_anywhere() -> None:
    documents = draw_document_numbers(replace(SHAPE, rows=3, documents=5), CPU, torch.Generator().manual_seed(1))
    assert documents.shape == (3, 96) and (documents.diff() >= 0).all() and (documents[:, 0] == 0).all()
    assert not torch.equal(documents[0], documents[1]) and (documents[:, -1] == 4).all()


def test_the_expected_values_are_those_of_the_reference() -> None:
    generator = torch.Generator().manual_seed(1)
    packed = replace(SHAPE, documents=3)
    given = draw_attention_inputs(packed, torch.float64, CPU, generator, sharpness=4.0)
    output = reference.attend_reference(
        *given.leaves, MaskSpec.from_documents(SHAPE.layout, given.documents), given.scale
    )
    for got, wanted in zip(expected_attention(given, packed), (output, *given.gradients(output)), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "pair",
    [(SHAPE.length - 2, 2 * SHAPE.length - 3), (2 * SHAPE.length - 2, 2 * SHAPE.length - 1)],
    ids=["a late noisy token sees its own clean block", "a late clean token sees the next"],
)
def test_one_wrong_pair_is_found_in_bf16(pair: tuple[int, int]) -> None:
    def show(table: Tensor) -> None:
        assert not table[pair]
        table[pair] = True

    assert checked(attend_with(show)).verdict.startswith("WRONG: draw")


def test_a_wrong_gradient_is_found() -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            gradient = gradient.clone()
            gradient[:, :, -1] *= 0.5  # of the last position alone
            return gradient

    def attend(query, key, value, spec, scale):
        return reference.attend_reference(query, Halved.apply(key), value, spec, scale)

    # The last clean token is seen by itself alone; its key's gradient is small, not nothing.
    assert checked(attend).verdict.startswith("WRONG")


def test_nan_is_wrong() -> None:
    def attend(query, key, value, spec, scale):
        return reference.attend_reference(query, key, value, spec, scale) * torch.nan

    assert checked(attend).verdict.startswith("WRONG")


def test_results_that_move_are_counted() -> None:
    def attend(query, key, value, spec, scale):
        noise = 1 + torch.randint(2, ()) / 128  # one bit of bf16
        return reference.attend_reference(query, key, value, spec, scale) * noise.to(query)

    found = checked(attend, draws=20)
    assert found.verdict == "ok"
    assert found.nondeterministic > 0


def test_a_kernel_that_fails_is_wrong_and_one_that_ran_out_of_time_is_not_right() -> None:
    def attend(query, key, value, spec, scale):
        raise RuntimeError("no kernel image")

    assert checked(attend).verdict == "WRONG: RuntimeError: no kernel image"
    late = check_attention_kernel(
        "ours", reference.attend_reference, SHAPE, DrawSettings(9, torch.bfloat16, CPU), TimeBudget(0)
    )
    assert late.verdict == "cut at 0 of 9"


def test_the_loss_is_checked_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_arithmetic, "CHUNK_LOGITS", 37 * 128)
    shape, settings = HeadShape(37, 1001, 16), DrawSettings(3, torch.bfloat16, CPU)
    assert check_head_loss(shape, settings, TimeBudget(60)).verdict == "ok"
    # A vocabulary whose last chunk is left out:
    monkeypatch.setattr(lm_head, "_chunks", lambda weight, width: iter([slice(0, width)]))
    assert check_head_loss(shape, settings, TimeBudget(60)).verdict.startswith("WRONG")


def test_errors_are_relative_to_the_whole_and_to_the_vector() -> None:
    expected = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    got = expected.clone()
    got[2, 1] = 1.5
    whole, row = relative_errors(got, expected)
    assert whole == pytest.approx(0.5 / 26**0.5)
    assert row == pytest.approx(0.5 / (1 + 2))
    assert not relative_errors(got * torch.nan, expected)[0] <= 1


def test_a_gpu_is_asked_for_200_draws_of_three_shapes() -> None:
    plan = default_check_plan(torch.device("cuda"), None, 100)
    assert (plan.draws, len(plan.shapes), len(plan.heads)) == (200, 3, 3)
    assert (plan.full.length, plan.full.heads, plan.full.kv_heads, plan.full.head_dim) == (4096, 32, 8, 128)
    assert any(shape.length % shape.block_size for shape in plan.shapes)
    assert choose_backend(BackendRequest("auto", "cpu", torch.float32, 64, training=True))
