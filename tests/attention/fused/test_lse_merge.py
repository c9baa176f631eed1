"""The arithmetic of backend "te" in float64: pieces merged by log-sum-exp equal dense attention, both ways."""

from dataclasses import replace

import pytest
import torch

from nld_train.attention import reference
from nld_train.attention.fused import lse_merge
from nld_train.dual_stream.row_layout import RowLayout
from tests.attention.conftest import IN_PIECES

EDGES = [
    RowLayout(8, 4, True),
    RowLayout(7, 3, True),  # a last block cut short
    RowLayout(9, 8, True),  # of one token
    RowLayout(5, 8, True),  # one block, longer than the row: no triangle
    RowLayout(1, 1, True),
    RowLayout(6, 1, True),  # nothing near but oneself
    RowLayout(9, 4, False),
]


def random_cases() -> list[tuple[RowLayout, tuple[int, int]]]:
    """Any length, any block size, grouped heads."""
    generator = torch.Generator().manual_seed(21)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    heads = [(4, 4), (4, 2), (6, 2), (3, 1)]
    return [
        (RowLayout(number(2, 80), number(1, 20), True, bool(number(0, 2))), heads[number(0, len(heads))])
        for _ in range(40)
    ]


def worst(given, attend=IN_PIECES) -> float:
    """The largest difference from the dense reference, of the output and the three gradients."""
    both = zip(given.output_and_gradients(attend), given.output_and_gradients(reference.attend_reference), strict=True)
    return max(float((one - other).detach().abs().max()) for one, other in both)


@pytest.mark.parametrize("layout", EDGES, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
def test_equals_the_reference_forward_and_backward(case, layout: RowLayout, heads: tuple[int, int]) -> None:
    assert worst(case(layout, heads)) < 1e-13


def test_equals_the_reference_for_any_length_block_and_heads(case) -> None:
    assert max(worst(case(layout, heads)) for layout, heads in random_cases()) < 1e-12


def test_large_scores_do_not_overflow(case) -> None:
    """Scores of thousands, where exp() of a sum would be infinite and one key takes all."""
    given = replace(case(RowLayout(45, 7, True)), scale=600.0)
    scores = given.query @ given.key.repeat_interleave(2, 1).transpose(-1, -2) * given.scale
    assert scores.abs().max() > 5000
    output, *gradients = given.output_and_gradients(IN_PIECES)
    expected, *expected_gradients = given.output_and_gradients(reference.attend_reference)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_bf16_stays_within_two_roundings(case) -> None:
    """Of the piece and of the merged output: the error against float64 is that of dense bf16 attention, twice."""
    given = case(RowLayout(96, 8, True), dtype=torch.bfloat16)
    wide = replace(given, query=given.query.double(), key=given.key.double(), value=given.value.double())
    exact = reference.attend_reference(wide.query, wide.key, wide.value, wide.spec, wide.scale)
    dense, merged = (
        (attend(given.query, given.key, given.value, given.spec, given.scale).double() - exact).abs().max()
        for attend in (reference.attend_reference, IN_PIECES)
    )
    assert merged <= 2.5 * dense


def test_a_piece_without_keys_weighs_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    output, other = torch.randn(2, 5, 3, 8, generator=generator, dtype=torch.float64)
    lse = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    nothing = torch.full_like(lse, -torch.inf)
    kept, kept_lse = output.clone(), lse.clone()
    lse_merge.merge_by_lse(kept, kept_lse, torch.zeros_like(other), nothing)
    assert torch.equal(kept, output) and torch.equal(kept_lse, lse)
    lse_merge.merge_by_lse(kept, nothing, other, lse)
    assert torch.equal(kept, other) and torch.equal(nothing, lse)


def test_packed_documents_equal_the_reference_for_any_length_block_and_heads(case) -> None:
    """Two rows with documents of their own, of which some are shorter than a block."""
    assert max(worst(case(layout, heads, packed=True)) for layout, heads in random_cases()) < 1e-12


@pytest.mark.parametrize("layout", EDGES, ids=str)
def test_packed_documents_at_the_edges(case, layout: RowLayout) -> None:
    assert worst(case(layout, packed=True)) < 1e-13


def test_training_works_after_an_evaluation_in_inference_mode(case) -> None:
    given = case(RowLayout(12, 5, True))
    with torch.inference_mode():
        IN_PIECES(given.query, given.key, given.value, given.spec, given.scale)
    assert worst(given) < 1e-13
