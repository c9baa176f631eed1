import torch

from nld_train.noise.blocks import document_positions, row_block_ids

PACKED = torch.tensor([[0, 0, 0, 0, 0, 1, 2, 2], [4, 4, 7, 7, 7, 7, 7, 7]])


def test_positions_restart_at_each_document():
    assert document_positions(PACKED).tolist() == [[0, 1, 2, 3, 4, 0, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5]]


def test_one_document_is_cut_into_equal_blocks_and_a_rest():
    assert row_block_ids(8, 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_document_starts_a_new_block():
    assert row_block_ids(8, 3, PACKED).tolist() == [[0, 0, 0, 1, 1, 2, 3, 3], [0, 0, 1, 1, 1, 2, 2, 2]]
    assert row_block_ids(8, 3, PACKED[0]).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    assert torch.equal(row_block_ids(8, 3, torch.zeros(8, dtype=torch.int64)), row_block_ids(8, 3))
