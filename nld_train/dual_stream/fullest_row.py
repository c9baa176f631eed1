"""The row that takes most memory: every place of text holds a supervised token, and images fill the rest."""

from collections.abc import Iterator

import torch

from nld_train.config import RunConfig
from nld_train.types import Row, RowImage
from nld_train.vision_config import VisionConfig, image_token_count


def fullest_row(run: RunConfig) -> Row:
    """One document as long as the row: shorter ones would take less, as the token behind each has no AR target.

    Beside images the text has its L_text tokens at the row's end; images as large as there can be fill the places
    before them, and what is too small for another row of cells is padding.
    """
    length = run.data.sequence_length
    token = 1 if run.diffusion.mask_token_id == 0 else 0  # a token that may be masked is not the mask itself
    tokens, supervised = torch.full((length + 1,), token), torch.ones(length + 1, dtype=torch.bool)
    documents = torch.zeros(length, dtype=torch.int64) if run.diffusion.document_mask else None
    if run.vision is None or run.data.noisy_length == length:
        return Row(0, tokens, supervised, documents)
    room = length - run.data.noisy_length
    images = tuple(_images_that_fit(room, run.vision))
    clean_only = torch.arange(length) < room
    supervised[:room] = False
    return Row(0, tokens, supervised, documents, images, clean_only)


def _images_that_fit(room: int, vision: VisionConfig) -> Iterator[RowImage]:
    """Images one behind the other in `room` tokens, each as large as what is left of it allows."""
    most, start = vision.longest_edge // vision.cell, 0
    while room - start >= image_token_count(1, 1):
        columns = min(most, room - start - 1)
        rows = min(most, (room - start) // (columns + 1))
        yield RowImage(start, torch.zeros(3, rows * vision.cell, columns * vision.cell))
        start += image_token_count(rows, columns)
