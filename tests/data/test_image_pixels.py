"""Pixels and cells against transformers' own PixtralProcessor."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from nld_train.data.image_pixels import cell_grid, image_pixels
from nld_train.data.image_tokens import ImageTokens

NAMES = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
PATCH, MERGE = 14, 2
CELL = PATCH * MERGE


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """PixtralProcessor by longest edge, with a tokenizer that knows its tokens and letters."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PixtralImageProcessor, PixtralProcessor, PreTrainedTokenizerFast

    library = Tokenizer(models.WordLevel({"x": 0, "?": 1}, unk_token="?"))
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in NAMES])
    folder = tmp_path_factory.mktemp("processor")
    library.save(str(folder / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), unk_token="?")
    return {
        edge: PixtralProcessor(
            PixtralImageProcessor(patch_size=PATCH, size={"longest_edge": edge}),
            tokenizer,
            patch_size=PATCH,
            spatial_merge_size=MERGE,
        )
        for edge in (280, 1540)
    }


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    return image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)


def encoded(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG" if image.mode != "CMYK" else "TIFF", **options)
    return stream.getvalue()


SIZES = [(448, 308), (28, 28), (1, 1), (29, 27), (280, 281), (700, 90), (90, 700), (1541, 400), (333, 777)]


@pytest.mark.parametrize("edge", [280, 1540])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_tokens_are_those_of_the_processor(
    processors: dict[int, Any], size: tuple[int, int], edge: int
) -> None:
    image = random_image(*size)
    theirs = processors[edge](images=[image], text="[IMG]", return_tensors="pt")
    pixels = image_pixels(encoded(image), CELL, edge)
    assert pixels.dtype == torch.float32 and pixels.shape == theirs["pixel_values"][0].shape
    assert (pixels - theirs["pixel_values"][0]).abs().max() < 1e-6
    rows, columns = cell_grid(size[1], size[0], CELL, edge)
    assert pixels.shape == (3, rows * CELL, columns * CELL)
    known = processors[edge].tokenizer.convert_tokens_to_ids(list(NAMES))
    assert ImageTokens(NAMES, *known).expand(rows, columns) == theirs["input_ids"][0].tolist()


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_colours_are_converted_as_the_processor_does(processors: dict[int, Any], mode: str) -> None:
    data = encoded(random_image(60, 60, mode))
    theirs = processors[280](images=[Image.open(io.BytesIO(data))], text="[IMG]", return_tensors="pt")
    assert (image_pixels(data, CELL, 280) - theirs["pixel_values"][0]).abs().max() < 1e-6


def test_an_image_is_turned_as_transformers_turns_what_it_loads(processors: dict[int, Any], tmp_path: Path) -> None:
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(random_image(84, 56), exif=exif)
    (tmp_path / "a.png").write_bytes(data)
    theirs = processors[280](images=[load_image(str(tmp_path / "a.png"))], text="[IMG]", return_tensors="pt")
    pixels = image_pixels(data, CELL, 280)
    assert pixels.shape == (3, 84, 56) and (pixels - theirs["pixel_values"][0]).abs().max() < 1e-6
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == (56, 84)


def test_cells_of_any_size_are_counted_as_transformers_counts_them() -> None:
    from transformers.models.pixtral.image_processing_pixtral import get_resize_output_image_size

    random = np.random.default_rng(3)
    sizes = np.exp(random.uniform(0, np.log(20_000), (20_000, 2))).astype(int)
    sizes = np.concatenate([sizes, random.integers(1, 4000, (20_000, 2))])
    for height, width in sizes.tolist():
        edge = int(random.integers(1, 60)) * CELL
        theirs = get_resize_output_image_size(torch.empty(1, height, width, device="meta"), edge, CELL)
        rows, columns = cell_grid(height, width, CELL, edge)
        assert (rows * CELL, columns * CELL) == tuple(theirs), (height, width, edge)
