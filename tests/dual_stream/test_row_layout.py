import torch

from nld_train.dual_stream.row_layout import RowLayout, layout_block_ids, locate_row, rotary_positions

PACKED = torch.tensor([[0, 0, 0, 1, 1], [3, 3, 3, 3, 3]])


def test_size_and_halves():
    assert (RowLayout(5, 2, True).size, RowLayout(5, 2, True).clean_start) == (10, 5)
    assert (RowLayout(5, 2, False).size, RowLayout(5, 2, False).clean_start) == (5, 0)


def test_layouts_of_the_same_numbers_share_a_cache_entry():
    assert len({RowLayout(5, 2, True), RowLayout(5, 2, True), RowLayout(5, 2, False)}) == 2


def test_positions_are_the_same_in_both_halves():
    assert rotary_positions(RowLayout(5, 2, True)).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert rotary_positions(RowLayout(5, 2, False)).tolist() == [0, 1, 2, 3, 4]


def test_positions_restart_at_each_document():
    assert rotary_positions(RowLayout(5, 2, True), PACKED).tolist() == [[0, 1, 2, 0, 1] * 2, [0, 1, 2, 3, 4] * 2]
    assert rotary_positions(RowLayout(5, 2, False), PACKED).tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]


def test_blocks_restart_at_each_document():
    assert layout_block_ids(RowLayout(5, 2, True)).tolist() == [0, 0, 1, 1, 2]
    assert layout_block_ids(RowLayout(5, 2, True), PACKED).tolist() == [[0, 0, 1, 2, 2], [0, 0, 1, 1, 2]]


def test_places_written_out():
    where = locate_row(RowLayout(3, 2, True))
    assert where.noisy.tolist() == [True, True, True, False, False, False]
    assert where.position.tolist() == [0, 1, 2, 0, 1, 2]
    assert where.block.tolist() == [0, 0, 1, 0, 0, 1]
    assert where.document.tolist() == [0, 0, 0, 0, 0, 0]


def test_places_of_packed_rows_written_out():
    where = locate_row(RowLayout(5, 2, True), PACKED)
    assert where.noisy.tolist() == [[True] * 5 + [False] * 5] * 2
    assert where.position.tolist() == [[0, 1, 2, 0, 1] * 2, [0, 1, 2, 3, 4] * 2]
    assert where.block.tolist() == [[0, 0, 1, 2, 2] * 2, [0, 0, 1, 1, 2] * 2]
    assert where.document.tolist() == [[0, 0, 0, 1, 1] * 2, [3, 3, 3, 3, 3] * 2]


def test_a_row_of_one_document_is_the_same_with_and_without_its_number():
    layout = RowLayout(7, 3, True)
    numbered = locate_row(layout, torch.zeros(1, 7, dtype=torch.int64))
    plain = locate_row(layout)
    assert torch.equal(numbered.noisy[0], plain.noisy) and torch.equal(numbered.document[0], plain.document)
    assert torch.equal(numbered.position[0], plain.position) and torch.equal(numbered.block[0], plain.block)
