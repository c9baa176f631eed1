"""The plain engine: what every engine of attention in pieces has to do."""

import pytest
import torch

from nld_train.attention.fused.kernel import CAUSAL, PlainKernel, Segments, Window

ENGINE, SCALE = PlainKernel(), 0.7
BANDS = [Window(), CAUSAL, Window(left=2), Window(left=1, right=0)]


EQUAL = Segments((4, 4, 4), (6, 6, 6))
RAGGED = Segments((4, 4, 1, 5), (6, 6, 3, 5))


def numbers(problems: Segments, heads=(4, 2), dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(problems.keys))
    query = torch.randn(sum(problems.queries), heads[0], 8, generator=generator, dtype=dtype)
    key, value = torch.randn(2, sum(problems.keys), heads[1], 8, generator=generator, dtype=dtype)
    return [query, key, value, torch.randn(query.shape, generator=generator, dtype=dtype)]


def test_bands_as_drawn_by_hand() -> None:
    assert Window().table(2, 3).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert CAUSAL.table(2, 3).tolist() == [[1, 1, 0], [1, 1, 1]]
    assert Window(left=1).table(3, 4).tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert Window(left=1, right=0).table(2, 4).tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]


def test_problems_in_groups_of_one_shape() -> None:
    assert EQUAL.equal and not EQUAL.square and not RAGGED.equal and Segments((3, 1), (3, 1)).square
    assert [*EQUAL.groups()] == [(slice(0, 12), slice(0, 18), 3)]
    assert [*RAGGED.groups()] == [
        (slice(0, 8), slice(0, 12), 2),
        (slice(8, 9), slice(12, 15), 1),
        (slice(9, 14), slice(15, 20), 1),
    ]


@pytest.mark.parametrize("band", BANDS, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("problems", [EQUAL, RAGGED], ids=["equal", "ragged"])
def test_its_backward_is_that_of_autograd(band: Window, heads: tuple[int, int], problems: Segments) -> None:
    query, key, value, gradient = (x.requires_grad_() for x in numbers(problems, heads))
    output, lse = ENGINE.forward(query, key, value, problems, band, SCALE)
    with torch.no_grad():
        parts = ENGINE.backward(gradient, query, key, value, output, lse, problems, band, SCALE)
    for part, expected in zip(parts, torch.autograd.grad(output, (query, key, value), gradient), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-13)


def test_ragged_problems_are_each_as_it_is_alone() -> None:
    query, key, value, _ = numbers(RAGGED)
    output, lse = ENGINE.forward(query, key, value, RAGGED, CAUSAL, SCALE)
    counts = RAGGED.queries, RAGGED.keys
    parts = zip(*counts, query.split(counts[0]), key.split(counts[1]), value.split(counts[1]), strict=True)
    alone = [ENGINE.forward(q, k, v, Segments((n,), (m,)), CAUSAL, SCALE) for n, m, q, k, v in parts]
    torch.testing.assert_close(output, torch.cat([one for one, _ in alone]))
    torch.testing.assert_close(lse, torch.cat([one for _, one in alone], 1))


@pytest.mark.parametrize("problems", [EQUAL, RAGGED, Segments((5,), (5,)), Segments((3,), (5,))], ids=str)
def test_causal_is_the_causal_piece(problems: Segments) -> None:
    query, key, value, _ = numbers(problems)
    output, _ = ENGINE.forward(query, key, value, problems, CAUSAL, SCALE)
    torch.testing.assert_close(ENGINE.causal(query, key, value, problems, SCALE), output)


def test_bf16_is_computed_in_float32_and_rounded_once() -> None:
    *inputs, gradient = numbers(EQUAL, dtype=torch.bfloat16)
    output, lse = ENGINE.forward(*inputs, EQUAL, CAUSAL, SCALE)
    wide, wide_lse = ENGINE.forward(*(x.double() for x in inputs), EQUAL, CAUSAL, SCALE)
    assert output.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), wide_lse, rtol=1e-6, atol=1e-6)
    assert (output.double() - wide).abs().max() <= wide.abs().max() * 2**-8
    parts = ENGINE.backward(gradient, *inputs, output, lse, EQUAL, CAUSAL, SCALE)
    assert all(part.dtype == torch.bfloat16 for part in parts)
