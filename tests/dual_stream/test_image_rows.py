"""Rows with images: who sees whom, where blocks lie, and the batch that is made of them."""

import pytest
import torch

from nld_train.config import DiffusionConfig
from nld_train.dual_stream.batch import collate_rows
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout, layout_block_ids, rotary_positions
from nld_train.dual_stream.visibility import visible_table
from nld_train.noise.corrupt import corrupt_row
from nld_train.noise.law import LAWS
from nld_train.types import NoisyRow, Row
from tests.image_rows import VISION, DrawnRows, draw_rows, make_row

CPU = torch.device("cpu")
CONFIG = DiffusionConfig(block_size=2, mask_token_id=9, document_mask=True)
# Two words, an image of one cell (two tokens), three words, and a place of padding: blocks of 2.
PIECES = [("prompt", 0, (2, 0)), ("image", 0, (1, 1)), ("prompt", 0, (1, 0)), ("answer", 0, (2, 0))]

# t: text, i: image, p: padding. Of the noisy half, the first block stands before the image and does not see it.
#        noisy   clean
#        tttttp  ttiitttp
BY_HAND = """
         ##.... ........
         ##.... ........
         ..##.. ####....
         ..##.. ####....
         ....#. ######..
         .....# ........

         ...... #.......
         ...... ##......
         ...... ###.....
         ...... ####....
         ...... #####...
         ...... ######..
         ...... #######.
         ...... .......#
"""


def drawn_table(drawing: str) -> torch.Tensor:
    lines = [line.replace(" ", "") for line in drawing.split("\n")]
    return torch.tensor([[cell == "#" for cell in line] for line in lines if line])


def seen_by_the_words(drawn: DrawnRows, row: int) -> torch.Tensor:
    """The table of one row in words, pair by pair, sharing nothing with the predicate: [S, S]."""
    layout, documents = drawn.layout, drawn.documents[row].tolist()
    clean_only = drawn.clean_only[row].tolist()
    # 1. The blocks: lists of neighbouring text tokens, cut at images, at documents, and at the block's size.
    blocks: list[list[int]] = []
    for token in range(layout.length):
        if clean_only[token]:
            continue
        goes_on = (
            blocks
            and blocks[-1][-1] == token - 1
            and documents[token - 1] == documents[token]
            and len(blocks[-1]) < layout.block_size
        )
        if goes_on:
            blocks[-1].append(token)
        else:
            blocks.append([token])
    text = [token for block in blocks for token in block]
    table = torch.zeros(layout.size, layout.size, dtype=torch.bool)
    # 2. A noisy token sees its block's noisy tokens, and what its document holds before the block.
    for block in blocks:
        for token in block:
            query = text.index(token)
            for other in block:
                table[query, text.index(other)] = True
            for key in range(block[0]):
                if documents[key] == documents[token]:
                    table[query, layout.clean_start + key] = True
    # 3. Padding sees the padding of its block.
    padding = list(range(len(text), layout.noisy_length))
    for one in padding:
        for other in padding:
            if (one - len(text)) // layout.block_size == (other - len(text)) // layout.block_size:
                table[one, other] = True
    # 4. A clean token sees its document up to itself.
    for query in range(layout.length):
        for key in range(query + 1):
            if documents[key] == documents[query]:
                table[layout.clean_start + query, layout.clean_start + key] = True
    return table


def test_table_of_two_words_an_image_and_three_words_as_drawn_by_hand() -> None:
    row = make_row(0, PIECES, 8, 40)
    layout = RowLayout(8, 2, True, text_length=6)
    assert row.documents is not None and row.clean_only is not None
    places = row.documents[None], row.clean_only[None]
    assert torch.equal(visible_table(layout, *places)[0], drawn_table(BY_HAND))
    assert rotary_positions(layout, *places)[0].tolist() == [0, 1, 4, 5, 6, 0, 0, 1, 2, 3, 4, 5, 6, 0]
    assert layout_block_ids(layout, *places)[0].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("seed", range(12))
def test_table_is_the_rule_in_words(seed: int) -> None:
    drawn = draw_rows(seed, length=40 + seed, text_length=20 + seed % 7, block_size=1 + seed % 5)
    table = visible_table(drawn.layout, drawn.documents, drawn.clean_only)
    assert table.any(-1).all(), "a query without a key has no softmax"
    for row in range(len(drawn.rows)):
        assert torch.equal(table[row], seen_by_the_words(drawn, row))


@pytest.mark.parametrize("seed", range(6))
def test_a_spec_gives_back_documents_and_images(seed: int) -> None:
    drawn = draw_rows(seed, length=48, text_length=24, block_size=4)
    spec = MaskSpec.from_documents(drawn.layout, drawn.documents, clean_only=drawn.clean_only)
    documents, clean_only = spec.places_on(CPU)
    assert clean_only is not None and torch.equal(clean_only, drawn.clean_only)
    assert documents is not None
    assert torch.equal(documents.diff() != 0, drawn.documents.diff() != 0)
    assert spec == MaskSpec.from_documents(drawn.layout, documents, clean_only=clean_only)
    one = spec.row_spec(1)
    assert torch.equal(one.clean_only_on(CPU), drawn.clean_only[1:])  # type: ignore[arg-type]


def test_batch_written_out() -> None:
    row = make_row(7, PIECES, 8, 40)
    masked = torch.tensor([False] * 5 + [True, False, False])
    noisy = torch.where(masked, 9, row.tokens[:-1])
    batch = collate_rows([NoisyRow(row, noisy, masked, torch.full((8,), 0.5))], CONFIG, text_length=6, vision=VISION)
    a, b, c, d, e = (int(row.tokens[place]) for place in (0, 1, 4, 5, 6))
    assert batch.input_ids.tolist() == [[a, b, c, 9, e, 0, a, b, 3, 5, c, d, e, 0]]
    assert batch.diffusion_positions.tolist() == [3] and batch.diffusion_targets.tolist() == [d]
    # Clean tokens 4 and 5 predict tokens 5 and 6.
    assert batch.ar_positions.tolist() == [6 + 4, 6 + 5] and batch.ar_targets.tolist() == [d, e]
    assert batch.denominator == 2 and batch.maskable == 2
    assert batch.images is not None and batch.images.positions.tolist() == [6 + 2]
    assert batch.images.sizes.tolist() == [[2, 2]] and torch.equal(batch.images.pixels[0], row.images[0].pixels)


@pytest.mark.parametrize("seed", range(4))
def test_cells_stand_where_the_image_token_does_and_targets_where_the_text_does(seed: int) -> None:
    drawn = draw_rows(seed, length=64, text_length=32, block_size=4, count=3)
    rows = [corrupt_row(row, CONFIG, "train", 3) for row in drawn.rows]
    batch = collate_rows(rows, CONFIG, text_length=32, vision=VISION)
    flat = batch.input_ids.flatten()
    assert batch.images is not None
    cells = sorted((flat == VISION.image_token_id).nonzero().flatten().tolist())
    assert sorted(batch.images.positions.tolist()) == cells, "images stand in the clean half alone"
    assert not torch.isin(batch.input_ids[:, :32], torch.tensor(VISION.token_ids)).any()
    assert (flat[batch.diffusion_positions] == CONFIG.mask_token_id).all()
    assert batch.diffusion_positions.numel() == sum(int(row.masked.sum()) for row in rows) > 0


@pytest.mark.parametrize("law", LAWS)
def test_images_are_never_masked_whatever_the_law(law) -> None:
    config = DiffusionConfig(block_size=4, mask_token_id=9, document_mask=True, noise_law=law)
    for row in draw_rows(5, length=64, text_length=32, block_size=4, count=8).rows:
        assert row.clean_only is not None
        assert not corrupt_row(row, config, "train", 8).masked[row.clean_only].any()


def test_a_micro_batch_without_an_image_is_that_of_a_text_run_bit_for_bit() -> None:
    pieces = [("prompt", 0, (5, 0)), ("answer", 0, (7, 0)), ("prompt", 1, (3, 0)), ("answer", 1, (6, 0))]
    with_padding = make_row(3, pieces, 24, 40)
    as_text = Row(3, with_padding.tokens, with_padding.supervised, with_padding.documents)
    here, there = (corrupt_row(row, CONFIG, "train", 1) for row in (with_padding, as_text))
    assert torch.equal(here.noisy, there.noisy) and torch.equal(here.p, there.p)
    one, other = collate_rows([here], CONFIG, vision=VISION), collate_rows([there], CONFIG)
    assert one.clean_only is None and one.images is None and one.documents is not None
    for name in ("input_ids", "documents", "ar_positions", "ar_weights", "diffusion_positions", "diffusion_weights"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
