import random

import pytest
import torch

from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_between, visible_table

# Two blocks of four tokens, drawn by hand: rows look, columns are seen; the noisy half comes first.
BY_HAND = """
####.... ........
####.... ........
####.... ........
####.... ........
....#### ####....
....#### ####....
....#### ####....
....#### ####....

........ #.......
........ ##......
........ ###.....
........ ####....
........ #####...
........ ######..
........ #######.
........ ########
"""

# Documents of 3 and 5 tokens, blocks of 4: block 0 is cut short by the end of its document.
PACKED_BY_HAND = """
###..... ........
###..... ........
###..... ........
...####. ........
...####. ........
...####. ........
...####. ........
.......# ...####.

........ #.......
........ ##......
........ ###.....
........ ...#....
........ ...##...
........ ...###..
........ ...####.
........ ...#####
"""


def parse(drawing: str) -> torch.Tensor:
    return torch.tensor([[cell == "#" for cell in line.replace(" ", "")] for line in drawing.split("\n") if line])


def seen_by_the_words(layout: RowLayout, documents: list[int], query: int, key: int) -> bool:
    """The rule of the paper in its own words, one pair at a time, sharing nothing with the predicate."""
    length = layout.length
    q, k = query % length, key % length
    if documents[q] != documents[k]:
        return False
    start = documents.index(documents[q])
    q_block, k_block = (q - start) // layout.block_size, (k - start) // layout.block_size
    query_noisy, key_noisy = (layout.dual and place < length for place in (query, key))
    if query_noisy:
        return q_block == k_block if key_noisy else k_block < q_block
    return not key_noisy and k <= q


def random_documents(length: int, generator: random.Random) -> list[int]:
    return sorted(generator.randrange(4) for _ in range(length))


def test_table_of_two_blocks_of_four_tokens_as_drawn_by_hand():
    assert torch.equal(visible_table(RowLayout(8, 4, True)), parse(BY_HAND))


def test_table_of_two_packed_documents_as_drawn_by_hand():
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    assert torch.equal(visible_table(RowLayout(8, 4, True), documents)[0], parse(PACKED_BY_HAND))


def test_clean_half_alone_is_causal():
    assert torch.equal(visible_table(RowLayout(6, 4, False)), torch.ones(6, 6).tril().bool())


@pytest.mark.parametrize("dual", [True, False])
def test_table_says_what_the_words_say_for_random_rows(dual):
    generator = random.Random(0)
    for _ in range(25):
        layout = RowLayout(generator.randint(1, 13), generator.randint(1, 6), dual)
        rows = [random_documents(layout.length, generator) for _ in range(2)] + [[0] * layout.length]
        table = visible_table(layout, torch.tensor(rows))
        span = range(layout.size)
        assert table.tolist() == [[[seen_by_the_words(layout, row, q, k) for k in span] for q in span] for row in rows]
        assert torch.equal(visible_table(layout), table[2])


def test_everybody_sees_somebody():
    generator = random.Random(1)
    for _ in range(20):
        documents = torch.tensor([random_documents(11, generator)])
        assert visible_table(RowLayout(11, 3, True), documents).any(-1).all()


def test_a_cut_is_a_cut_of_the_table():
    layout, documents = RowLayout(9, 4, True), torch.tensor([[0] * 4 + [1] * 5, [0] * 9])
    queries, keys = torch.tensor([1, 8, 9, 17]), torch.tensor([0, 5, 10])
    assert torch.equal(visible_between(layout, queries, keys), visible_table(layout)[queries][:, keys])
    packed = visible_between(layout, queries, keys, documents)
    assert torch.equal(packed, visible_table(layout, documents)[:, queries][:, :, keys])


def test_pairs_are_counted_without_the_table():
    for length in (1, 2, 7, 8, 9, 31, 64):
        for block_size in (1, 3, 4, 8, 64, 100):
            for dual in (True, False):
                layout = RowLayout(length, block_size, dual)
                assert layout.visible_pairs == visible_table(layout).sum()
