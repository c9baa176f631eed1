import torch

from nld_train.dual_stream.layout import Layout, block_ids, places, positions

PACKED = torch.tensor([[0, 0, 0, 1, 1], [3, 3, 3, 3, 3]])


def test_size_and_halves():
    assert (Layout(5, 2, True).size, Layout(5, 2, True).clean_start) == (10, 5)
    assert (Layout(5, 2, False).size, Layout(5, 2, False).clean_start) == (5, 0)


def test_layouts_of_the_same_numbers_share_a_cache_entry():
    assert len({Layout(5, 2, True), Layout(5, 2, True), Layout(5, 2, False)}) == 2


def test_positions_are_the_same_in_both_halves():
    assert positions(Layout(5, 2, True)).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert positions(Layout(5, 2, False)).tolist() == [0, 1, 2, 3, 4]


def test_positions_restart_at_each_document():
    assert positions(Layout(5, 2, True), PACKED).tolist() == [[0, 1, 2, 0, 1] * 2, [0, 1, 2, 3, 4] * 2]
    assert positions(Layout(5, 2, False), PACKED).tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]


def test_blocks_restart_at_each_document():
    assert block_ids(Layout(5, 2, True)).tolist() == [0, 0, 1, 1, 2]
    assert block_ids(Layout(5, 2, True), PACKED).tolist() == [[0, 0, 1, 2, 2], [0, 0, 1, 1, 2]]


def test_places_written_out():
    where = places(Layout(3, 2, True))
    assert where.noisy.tolist() == [True, True, True, False, False, False]
    assert where.position.tolist() == [0, 1, 2, 0, 1, 2]
    assert where.block.tolist() == [0, 0, 1, 0, 0, 1]
    assert where.document.tolist() == [0, 0, 0, 0, 0, 0]


def test_places_of_packed_rows_written_out():
    where = places(Layout(5, 2, True), PACKED)
    assert where.noisy.tolist() == [[True] * 5 + [False] * 5] * 2
    assert where.position.tolist() == [[0, 1, 2, 0, 1] * 2, [0, 1, 2, 3, 4] * 2]
    assert where.block.tolist() == [[0, 0, 1, 2, 2] * 2, [0, 0, 1, 1, 2] * 2]
    assert where.document.tolist() == [[0, 0, 0, 1, 1] * 2, [3, 3, 3, 3, 3] * 2]


def test_a_row_of_one_document_is_the_same_with_and_without_its_number():
    layout = Layout(7, 3, True)
    numbered = places(layout, torch.zeros(1, 7, dtype=torch.int64))
    plain = places(layout)
    assert torch.equal(numbered.noisy[0], plain.noisy) and torch.equal(numbered.document[0], plain.document)
    assert torch.equal(numbered.position[0], plain.position) and torch.equal(numbered.block[0], plain.block)
