"""Images of a row, decoded as the loader's workers decode them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nld_train.data.blended_rows import BlendedRows
from nld_train.data.image_pixels import image_pixels
from tests.data.test_image_rows import DATA, prepare, rows_of
from tests.data_prep.image_files import asked, at, save_image

pytestmark = pytest.mark.megatron


def test_a_row_has_its_images_in_place_and_what_is_clean_alone(tmp_path: Path) -> None:
    from nld_train.objectives.choose import objective_of
    from nld_train.recipe import load_recipe
    from nld_train.train.dataset import RunRows

    pictures = [save_image(tmp_path / f"{n}.png", 60 + 40 * n, 50) for n in range(2)]
    prefix = prepare(tmp_path, [asked("see ", at("0.png"), " and ", at("1.png")), asked("what")])
    file = rows_of(prefix, replace(DATA, text_length=200))
    run = load_recipe("tiny_stage2_joint", ["data.blend=nowhere"])
    rows = RunRows(BlendedRows([file], None, range(1)), objective_of(run), purpose="train", count=1, repeat_after=1)
    row, sample = rows.plain_row(0), file.epoch_row(0, 0)
    assert [image.start for image in row.images] == [image.start for image in sample["images"]]
    for image, data in zip(row.images, pictures, strict=True):
        assert torch.equal(image.pixels, image_pixels(data, 28, 1540))
        assert row.tokens[image.start] == 12
    assert row.clean_only is not None and row.clean_only.dtype == torch.bool and row.clean_only.shape == (256,)
    assert row.clean_only.tolist() == sample["clean_only"].tolist()
