"""The plain kernel: what every kernel of attention in pieces has to do."""

import pytest
import torch

from nld_train.attention.fused.kernel import CAUSAL, QKV, MergedResult, PlainKernel, Segments, Window

KERNEL, SCALE = PlainKernel(), 0.7
WINDOWS = [Window(), CAUSAL, Window(left=2), Window(left=1, right=0)]


EQUAL = Segments((4, 4, 4), (6, 6, 6))
RAGGED = Segments((4, 4, 1, 5), (6, 6, 3, 5))


def numbers(segments: Segments, heads=(4, 2), dtype=torch.float64) -> tuple[QKV, torch.Tensor]:
    """Random inputs and a gradient of the output."""
    generator = torch.Generator().manual_seed(sum(segments.keys))
    query = torch.randn(sum(segments.queries), heads[0], 8, generator=generator, dtype=dtype)
    key, value = torch.randn(2, sum(segments.keys), heads[1], 8, generator=generator, dtype=dtype)
    return QKV(query, key, value), torch.randn(query.shape, generator=generator, dtype=dtype)


def test_windows_as_drawn_by_hand() -> None:
    assert Window().visible_table(2, 3).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert CAUSAL.visible_table(2, 3).tolist() == [[1, 1, 0], [1, 1, 1]]
    assert Window(left=1).visible_table(3, 4).tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert Window(left=1, right=0).visible_table(2, 4).tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]


def test_segments_in_groups_of_one_shape() -> None:
    assert EQUAL.one_fixed_shape and not EQUAL.all_square
    assert not RAGGED.one_fixed_shape and Segments((3, 1), (3, 1)).all_square
    assert not Segments((3,), (3,), of_documents=True).one_fixed_shape, "the next document has another length"
    assert [*EQUAL.same_shape_groups()] == [(slice(0, 12), slice(0, 18), 3)]
    assert [*RAGGED.same_shape_groups()] == [
        (slice(0, 8), slice(0, 12), 2),
        (slice(8, 9), slice(12, 15), 1),
        (slice(9, 14), slice(15, 20), 1),
    ]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("segments", [EQUAL, RAGGED], ids=["equal", "ragged"])
def test_its_backward_is_that_of_autograd(window: Window, heads: tuple[int, int], segments: Segments) -> None:
    inputs, gradient = numbers(segments, heads)
    qkv = QKV(*(x.requires_grad_() for x in inputs))
    output, lse = KERNEL.forward(qkv, segments, window, SCALE)
    with torch.no_grad():
        parts = KERNEL.backward(qkv, MergedResult(output, lse, gradient), segments, window, SCALE)
    for part, expected in zip(parts, torch.autograd.grad(output, qkv, gradient), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-13)


def test_ragged_segments_are_each_as_it_is_alone() -> None:
    (query, key, value), _ = numbers(RAGGED)
    output, lse = KERNEL.forward(QKV(query, key, value), RAGGED, CAUSAL, SCALE)
    counts = RAGGED.queries, RAGGED.keys
    parts = zip(*counts, query.split(counts[0]), key.split(counts[1]), value.split(counts[1]), strict=True)
    alone = [KERNEL.forward(QKV(q, k, v), Segments((n,), (m,)), CAUSAL, SCALE) for n, m, q, k, v in parts]
    torch.testing.assert_close(output, torch.cat([one for one, _ in alone]))
    torch.testing.assert_close(lse, torch.cat([one for _, one in alone], 1))


@pytest.mark.parametrize("segments", [EQUAL, RAGGED, Segments((5,), (5,)), Segments((3,), (5,))], ids=str)
def test_causal_is_the_causal_piece(segments: Segments) -> None:
    qkv, _ = numbers(segments)
    output, _ = KERNEL.forward(qkv, segments, CAUSAL, SCALE)
    torch.testing.assert_close(KERNEL.causal(qkv, segments, SCALE), output)


def test_bf16_is_computed_in_float32_and_rounded_once() -> None:
    qkv, gradient = numbers(EQUAL, dtype=torch.bfloat16)
    output, lse = KERNEL.forward(qkv, EQUAL, CAUSAL, SCALE)
    wide, wide_lse = KERNEL.forward(QKV(*(x.double() for x in qkv)), EQUAL, CAUSAL, SCALE)
    assert output.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), wide_lse, rtol=1e-6, atol=1e-6)
    assert (output.double() - wide).abs().max() <= wide.abs().max() * 2**-8
    parts = KERNEL.backward(qkv, MergedResult(output, lse, gradient), EQUAL, CAUSAL, SCALE)
    assert all(part.dtype == torch.bfloat16 for part in parts)
