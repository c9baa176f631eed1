"""The row that takes most memory."""

import pytest

from nld_train.dual_stream.context_shard import WHOLE
from nld_train.dual_stream.fullest_row import fullest_row
from nld_train.objectives.choose import objective_of
from nld_train.recipe import load_recipe
from nld_train.vision_config import image_token_count


def test_text_is_supervised_throughout() -> None:
    run = load_recipe("tiny_sft")
    row = fullest_row(run)
    assert bool(row.supervised.all()) and row.images == () and row.clean_only is None


@pytest.mark.parametrize("text_length", [200, 100, 254, 33])
def test_images_fill_what_the_text_leaves(text_length: int) -> None:
    run = load_recipe("tiny_vlm", [f"data.text_length={text_length}"])
    row = fullest_row(run)
    assert row.clean_only is not None and run.vision is not None
    assert int((~row.clean_only).sum()) == text_length and int(row.supervised[:-1].sum()) == text_length
    cell = run.vision.cell
    used = sum(image_token_count(image.pixels.shape[1] // cell, image.pixels.shape[2] // cell) for image in row.images)
    room = run.data.sequence_length - text_length
    assert room - 1 <= used <= room and all(max(image.pixels.shape) <= 64 for image in row.images)
    objective = objective_of(run)
    batch = objective.collate_draws([objective.draw_fullest(row)], WHOLE)
    assert batch.input_ids.shape == (1, run.positions)  # type: ignore[attr-defined]
    assert batch.diffusion_targets.numel() == text_length  # type: ignore[attr-defined]
    assert batch.images.positions.numel() == sum(  # type: ignore[attr-defined]
        image.pixels[0].numel() // cell**2 for image in row.images
    )
