"""Rows with images for tests: documents of text and images in any order, with padding behind them."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.dual_stream.row_layout import RowLayout
from nld_train.types import Row, RowImage
from nld_train.vision_config import VisionConfig, image_token_count

# Cells of 2 x 2 pixels; ids that no text of these tests has.
VISION = VisionConfig(
    layers=2,
    hidden=16,
    ffn=24,
    heads=2,
    patch_size=1,
    merge=2,
    longest_edge=16,
    image_token_id=3,
    break_token_id=4,
    end_token_id=5,
)
FIRST_TEXT = 10  # smallest id of a text's token


@dataclass(frozen=True)
class DrawnRows:
    """Rows of one layout: their documents [B, L], which tokens are clean only [B, L], and the rows themselves."""

    layout: RowLayout
    documents: Tensor
    clean_only: Tensor
    rows: list[Row]


def draw_rows(seed: int, length: int, text_length: int, block_size: int, count: int = 2, vocabulary: int = 40):
    """Random rows: documents of prompt, images between its words, and a supervised answer; then padding."""
    generator = random.Random(seed)
    rows = [_draw_row(generator, index, length, text_length, vocabulary) for index in range(count)]
    layout = RowLayout(length, block_size, True, text_length=text_length)
    documents = torch.stack([row.documents for row in rows if row.documents is not None])
    clean_only = torch.stack([row.clean_only for row in rows if row.clean_only is not None])
    return DrawnRows(layout, documents, clean_only, rows)


def _draw_row(generator: random.Random, index: int, length: int, text_length: int, vocabulary: int) -> Row:
    pieces: list[tuple[str, int, tuple[int, int]]] = []  # kind, document, (tokens, 0) or cells
    room, text, document = length, text_length, 0
    while True:
        drawn: list[tuple[str, int, tuple[int, int]]] = []
        for _ in range(generator.randrange(4)):
            if generator.random() < 0.5:
                drawn.append(("prompt", document, (generator.randrange(1, 6), 0)))
            else:
                drawn.append(("image", document, (generator.randrange(1, 3), generator.randrange(1, 4))))
        drawn = [("prompt", document, (1, 0)), *drawn] if generator.random() < 0.5 or not drawn else drawn
        drawn.append(("answer", document, (generator.randrange(1, 9), 0)))
        words = sum(size[0] for kind, _, size in drawn if kind != "image")
        images = sum(image_token_count(*size) for kind, _, size in drawn if kind == "image")
        if words + images > room or words > text:
            break
        pieces += drawn
        room, text, document = room - words - images, text - words, document + 1
    return make_row(index, pieces, length, vocabulary, generator.randrange(2**31))


def make_row(
    index: int, pieces: list[tuple[str, int, tuple[int, int]]], length: int, vocabulary: int, seed: int = 0
) -> Row:
    """A row of pieces (kind, document, size): "prompt" and "answer" of `size[0]` tokens, "image" of `size` cells."""
    noise = torch.Generator().manual_seed(seed)
    tokens, supervised, documents, clean_only, images = [], [], [], [], []
    for kind, document, size in pieces:
        if kind == "image":
            images.append(RowImage(len(tokens), torch.randn(3, 2 * size[0], 2 * size[1], generator=noise)))
            ids = ([VISION.image_token_id] * size[1] + [VISION.break_token_id]) * size[0]
            ids[-1] = VISION.end_token_id
        else:
            ids = torch.randint(FIRST_TEXT, vocabulary, (size[0],), generator=noise).tolist()
        tokens += ids
        supervised += [kind == "answer"] * len(ids)
        documents += [document] * len(ids)
        clean_only += [kind == "image"] * len(ids)
    padding = length + 1 - len(tokens)
    last = documents[-1] + 1 if documents else 0
    return Row(
        index,
        torch.tensor(tokens + [0] * padding),
        torch.tensor(supervised + [False] * padding),
        torch.tensor(documents + [last] * padding)[:length],
        tuple(images),
        torch.tensor(clean_only + [True] * padding)[:length],
    )
