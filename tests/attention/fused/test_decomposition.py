"""The pieces of the doubled row: what is seen, every pair once, and their arithmetic."""

import pytest
import torch

from nld_train.attention.fused.decomposition import (
    AttentionPiece,
    clean_pieces,
    concatenate_ranges,
    shifted_pieces,
    take_at,
    window_pieces,
)
from nld_train.attention.fused.kernel import CAUSAL
from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_between, visible_table
from tests.never_waits import NeverWaits

CPU = torch.device("cpu")
DOCUMENTS = ((5, 1, 4, 9, 3, 2, 24), (48,), (1,) * 48, (17, 31), (3, 3, 42), (4,) * 12)


def add_pairs(table: torch.Tensor, piece: AttentionPiece) -> None:
    """Add 1 to the table [queries, keys] at every pair of a piece."""
    queries, keys = (
        take_at(torch.arange(table.shape[0]), piece.queries),
        take_at(torch.arange(table.shape[1]), piece.keys),
    )
    shares = zip(queries.split(piece.segments.queries), keys.split(piece.segments.keys), strict=True)
    for here, seen in shares:
        table[here[:, None], seen[None]] += piece.window.visible_table(len(here), len(seen)).long()


@pytest.mark.parametrize("shard", [WHOLE, ContextShard(2, 0), ContextShard(2, 1), ContextShard(3, 1)], ids=str)
@pytest.mark.parametrize("noisy_causal", [False, True])
def test_the_pieces_are_what_is_seen_and_every_pair_once(shard: ContextShard, noisy_causal: bool) -> None:
    spec = MaskSpec(RowLayout(48, 4, True, noisy_causal), shard)
    layout, own = spec.layout, spec.own_noisy_count
    table = torch.zeros(layout.size // shard.ranks, shard.key_count(layout, packed=False), dtype=torch.int64)
    for piece in (*shifted_pieces(spec, CPU), *window_pieces(spec, CPU)):
        add_pairs(table[:own], piece)
    for piece in clean_pieces(spec):
        add_pairs(table[own:], piece)
    expected = visible_table(layout)[shard.queries(layout)][:, shard.keys(layout, packed=False)]
    assert torch.equal(table, expected.long())


@pytest.mark.parametrize("lengths", DOCUMENTS, ids=str)
@pytest.mark.parametrize("noisy_causal", [False, True])
@pytest.mark.parametrize("block_size", [1, 4, 7])
def test_so_are_those_of_packed_documents(lengths: tuple[int, ...], noisy_causal: bool, block_size: int) -> None:
    spec = MaskSpec(RowLayout(48, block_size, True, noisy_causal), documents=(lengths,))
    layout, documents = spec.layout, spec.document_numbers()
    table = torch.zeros(layout.size, layout.size, dtype=torch.int64)
    for piece in (*shifted_pieces(spec, CPU), *window_pieces(spec, CPU)):
        add_pairs(table[:48], piece)
    for piece in clean_pieces(spec):
        add_pairs(table[48:], piece)
    everything = torch.arange(layout.size)
    assert torch.equal(table, visible_between(layout, everything, everything, documents)[0].long())
    assert len(shifted_pieces(spec, CPU)) == (max(lengths) > block_size) and len(window_pieces(spec, CPU)) == 1


def test_rows_of_documents_one_behind_the_other() -> None:
    documents = torch.tensor([[0, 0, 0, 1], [5, 7, 7, 7]])
    spec = MaskSpec.from_documents(RowLayout(4, 2, True), documents)
    assert spec.documents == ((3, 1), (1, 3))
    assert spec.as_single_row() == MaskSpec(RowLayout(8, 2, True), documents=((3, 1, 1, 3),))
    assert spec.document_numbers().tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]


def test_pieces_of_packed_documents_wait_for_no_device() -> None:
    """Made on the host, from lengths that it knows."""
    spec = MaskSpec(RowLayout(48, 4, True), documents=(DOCUMENTS[0],))
    for make in (shifted_pieces, window_pieces):
        (piece,) = make(spec, torch.device("meta"))
        with NeverWaits():
            take_at(torch.empty(96, device="meta"), piece.keys)


def test_ranges() -> None:
    assert concatenate_ranges([3, 0, 9], [2, 0, 3], CPU).tolist() == [3, 4, 9, 10, 11]


def test_the_arithmetic_of_the_module() -> None:
    """Computed pairs, useful pairs and calls at L 4096, block 32: what decomposition.py says."""
    spec = MaskSpec(RowLayout(4096, 32, True))
    (triangle,), calls = shifted_pieces(spec, CPU), window_pieces(spec, CPU)
    whole = CAUSAL.count_pairs(4096, 4096)
    ((square, keys),) = zip(triangle.segments.queries, triangle.segments.keys, strict=True)
    far = CAUSAL.count_pairs(square, keys)
    shapes = [
        (piece, *shape) for piece in calls for shape in zip(piece.segments.queries, piece.segments.keys, strict=True)
    ]
    computed = sum(n * m for _, n, m in shapes)
    seen = sum(piece.window.count_pairs(n, m) for piece, n, m in shapes)
    assert (whole, far, square, keys) == (8_390_656, 8_260_080, 4064, 4064)
    assert (computed, seen, len(calls)) == (261_120, 194_064, 2)
    assert whole + far + seen == spec.layout.visible_pairs == 16_844_800
    assert f"{(whole + far + computed) / spec.layout.visible_pairs:.4f}" == "1.0040"


@pytest.mark.parametrize(("length", "calls"), [(32, 1), (4096, 3), (4099, 4)])
def test_calls_of_the_noisy_half_are_few(length: int, calls: int) -> None:
    """The triangle, the blocks with one before them, the first, and a last one cut short."""
    spec = MaskSpec(RowLayout(length, 32, True))
    assert len(shifted_pieces(spec, CPU)) + len(window_pieces(spec, CPU)) == calls
