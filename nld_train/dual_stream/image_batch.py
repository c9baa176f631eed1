"""Collation of images: which tokens of the rows stand in the clean half alone, and the pixels with their places."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.dual_stream.row_layout import RowLayout
from nld_train.types import BatchImages, Row
from nld_train.vision_config import VisionConfig


def stack_clean_only(rows: Sequence[Row], layout: RowLayout) -> Tensor | None:
    """Which tokens have no noisy copy: [B, L] bool on the host.

    None where the noisy half has a place for every token and no row has an image, so that such a micro-batch is that of
    a run of text, bit for bit; and where there is no noisy half.
    """
    whole = layout.noisy_length == layout.length and not any(row.images for row in rows)
    if whole or not layout.dual:
        return None
    nowhere = torch.zeros(layout.length, dtype=torch.bool)
    clean_only = torch.stack([nowhere if row.clean_only is None else row.clean_only for row in rows])
    text = int((~clean_only).sum(1).max())
    assert text <= layout.noisy_length, f"a row has {text} tokens of text, its noisy half {layout.noisy_length} places"
    return clean_only


def collate_images(rows: Sequence[Row], layout: RowLayout, vision: VisionConfig) -> BatchImages | None:
    """The images of the rows; None where they have none."""
    images = [(number, image) for number, row in enumerate(rows) for image in row.images]
    if not images:
        return None
    sizes = torch.tensor([image.pixels.shape[1:] for _, image in images])
    height, width = sizes.amax(0).tolist()
    pixels = torch.zeros(len(images), 3, height, width)
    for place, (_, image) in zip(pixels, images, strict=True):
        place[:, : image.pixels.shape[1], : image.pixels.shape[2]] = image.pixels
    flat = [
        number * layout.size + layout.clean_start + image.start + cell_offsets(image.pixels, vision)
        for number, image in images
    ]
    return BatchImages(pixels, sizes, torch.cat(flat))


def cell_offsets(pixels: Tensor, vision: VisionConfig) -> Tensor:
    """Where the cells of an image, `pixels` [3, H, W], stand among its tokens, whose every row of cells has a break or
    the end behind it: [rows * columns] int64."""
    rows, columns = (side // vision.cell for side in pixels.shape[1:])
    return (torch.arange(rows)[:, None] * (columns + 1) + torch.arange(columns)).flatten()
