"""The plain engine: what every engine of attention in pieces has to do."""

import pytest
import torch

from nld_train.attention.engine import CAUSAL, Band, PlainEngine

ENGINE, SCALE = PlainEngine(), 0.7
BANDS = [Band(), CAUSAL, Band(left=2), Band(left=1, right=0)]


def numbers(queries: int, keys: int, heads=(4, 2), problems: int = 3, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(queries * 100 + keys)
    query = torch.randn(problems, queries, heads[0], 8, generator=generator, dtype=dtype)
    key, value = torch.randn(2, problems, keys, heads[1], 8, generator=generator, dtype=dtype)
    return [query, key, value, torch.randn(query.shape, generator=generator, dtype=dtype)]


def test_bands_as_drawn_by_hand() -> None:
    assert Band().table(2, 3).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert CAUSAL.table(2, 3).tolist() == [[1, 1, 0], [1, 1, 1]]
    assert Band(left=1).table(3, 4).tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert Band(left=1, right=0).table(2, 4).tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("band", BANDS, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
def test_its_backward_is_that_of_autograd(band: Band, heads: tuple[int, int]) -> None:
    query, key, value, gradient = (x.requires_grad_() for x in numbers(4, 6, heads))
    output, lse = ENGINE.forward(query, key, value, band, SCALE)
    with torch.no_grad():
        parts = ENGINE.backward(gradient, query, key, value, output, lse, band, SCALE)
    for part, expected in zip(parts, torch.autograd.grad(output, (query, key, value), gradient), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("queries", [5, 3])
def test_causal_is_the_causal_piece(queries: int) -> None:
    query, key, value, _ = numbers(queries, 5, problems=1)
    output, _ = ENGINE.forward(query, key, value, CAUSAL, SCALE)
    torch.testing.assert_close(ENGINE.causal(query[0], key[0], value[0], SCALE), output[0])


def test_bf16_is_computed_in_float32_and_rounded_once() -> None:
    *inputs, gradient = numbers(4, 6, dtype=torch.bfloat16)
    output, lse = ENGINE.forward(*inputs, CAUSAL, SCALE)
    wide, wide_lse = ENGINE.forward(*(x.double() for x in inputs), CAUSAL, SCALE)
    assert output.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), wide_lse, rtol=1e-6, atol=1e-6)
    assert (output.double() - wide).abs().max() <= wide.abs().max() * 2**-8
    assert all(part.dtype == torch.bfloat16 for part in ENGINE.backward(gradient, *inputs, output, lse, CAUSAL, SCALE))
