"""From the bytes of an image to its pixels, with the values that transformers' PixtralProcessor gives.

The values are those of PixtralImageProcessor, its torchvision version, which AutoProcessor takes: the Pillow version
differs by a rounding of the resized pixels. It is given cells as patches, as PixtralProcessor gives it patch * merge.
"""

import functools
import math
import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # others run programs, or are read by few
# What Pillow raises for bytes that are no whole image.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
ORIENTATION = 0x0112  # of EXIF
TURNED_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height


def open_image(data: bytes) -> Image.Image:
    """An image whose header was read, and no pixel yet. Raises what Pillow raises for bytes that are no image."""
    return Image.open(BytesIO(data), formats=FORMATS)


def decode_image(data: bytes) -> Image.Image:
    """The first frame, turned as EXIF says and made RGB as transformers does: transparency is dropped, and values of
    16 bits above 255 are white."""
    image = ImageOps.exif_transpose(open_image(data))
    assert image is not None, "a new image is returned"
    return image if image.mode == "RGB" else image.convert("RGB")


def cell_grid(height: int, width: int, cell: int, longest_edge: int) -> tuple[int, int]:
    """Rows and columns of cells of an image of so many pixels, as transformers' Pixtral counts them; 0 where the short
    side would be less than a pixel."""
    ratio = max(height / longest_edge, width / longest_edge)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    return (height - 1) // cell + 1, (width - 1) // cell + 1


def image_pixels(data: bytes, cell: int, longest_edge: int) -> Tensor:
    """The pixels of an image, [3, rows * cell, columns * cell] float32, normalised."""
    processor = _image_processor(cell, longest_edge)
    pixels: Tensor = processor(decode_image(data), return_tensors="pt")["pixel_values"][0]
    return pixels


@functools.lru_cache(maxsize=4)
def _image_processor(cell: int, longest_edge: int) -> Any:
    from transformers import PixtralImageProcessor  # here, not above: importing it takes seconds

    return PixtralImageProcessor(patch_size=cell, size={"longest_edge": longest_edge})
