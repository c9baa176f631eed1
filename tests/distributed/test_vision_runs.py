"""Runs with a vision tower through Megatron-Bridge's loop: saved, resumed and started from under every layout.

Two of them have conversations without images, so that the text run says what the other must log. The others read drawn
pictures, in rows whose noisy half has places for text alone.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.image_check import ImageRules
from data_prep.picture_book import write_picture_book
from data_prep.prepare_chat import ChatOptions, prepare_chat
from nld_train.config import ParallelConfig, RunConfig
from nld_train.convert.torch_dist import StoredWeights
from nld_train.data.image_tokens import ImageSizes
from nld_train.data.run_rows import open_run_rows
from nld_train.objectives.choose import objective_of
from nld_train.run_folder.paths import step_folder
from tests.chat_files import on_conversations
from tests.distributed.alike import assert_same_curve, assert_same_parameters, parameters
from tests.distributed.ranks import figures, on, small_run, train_together, with_train
from tests.model.images import VISION as ANY_VISION

pytestmark = pytest.mark.megatron

LAYOUTS: dict[str, ParallelConfig] = {
    "tensor2_sequence": on(2, tensor=2, sequence=True, recompute="full"),
    "pipeline2": on(2, pipeline=2),
    "data2": on(2),
}
VISION = replace(ANY_VISION, image_token_id=20, break_token_id=21, end_token_id=22)
TOWER = ("vision_tower.", "multi_modal_projector.")


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """All runs of this file, trained on one rank, then on two."""
    folder = tmp_path_factory.mktemp("vision_runs")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)

    draw_conversations(folder)

    def run(name: str, init: str | None, parallel: ParallelConfig, **section: object) -> RunConfig:
        made = on_conversations(small_run(name, folder, alpha=0.3, init=init, parallel=parallel), folder)
        longer = replace(made.model, rope=replace(made.model.rope, factor=32.0))
        sections = {"model": longer, "vision": VISION, **section}
        if init is not None:
            sections["data"] = replace(
                made.data, blend=(f"{folder}/data/pictures",), sequence_length=320, text_length=224
            )
        return with_train(replace(made, **sections), eval_batches=0, eval_decode=0)

    def half(whole: RunConfig) -> RunConfig:
        """The first two steps of a run, into its own folder; the same schedule goes on in the whole one."""
        short = with_train(replace(whole, name=f"{whole.name}_half"), iterations=2)
        return replace(short, optimizer=replace(short.optimizer, decay_iterations=0))

    alone = [run("text", None, on(1), vision=None), run("first", None, on(1)), run("one", "first", on(1))]
    frozen = replace(VISION, train_tower=False)
    alone.append(run("frozen", "first", on(1), vision=frozen))
    together = [run(name, "first", parallel) for name, parallel in LAYOUTS.items()]
    resumed = [run(f"{name}_resumed", "first", LAYOUTS[name]) for name in ("tensor2_sequence", "pipeline2")]
    together += [each for whole in resumed for each in (half(whole), whole)]
    train_together(alone, folder)
    train_together(together, folder)
    return {each.name: each for each in [*alone, *together]}


def draw_conversations(folder: Path) -> None:
    """A chat file with a picture in every conversation."""
    write_picture_book(folder / "book", pictures=60, asked=1, seed=1)
    names = ("<SPECIAL_20>", "<SPECIAL_21>", "<SPECIAL_22>")
    rules = ImageRules(names, ImageSizes(VISION.patch_size, VISION.merge, VISION.longest_edge))
    chat = folder / "book" / "chat.jsonl"
    prepare_chat([chat], folder / "data" / "pictures", folder / "tokenizer", ChatOptions(images=rules))


def test_rows_hold_pictures_and_less_text_than_tokens(trained: dict[str, RunConfig]) -> None:
    run = trained["one"]
    from nld_train.train.dataset import RunRows

    opened = open_run_rows(run, Path(run.output))["train"]
    rows = RunRows(opened, objective_of(run), purpose="train", count=8, repeat_after=8)
    for row in map(rows.plain_row, range(8)):
        assert row.images and row.clean_only is not None and 0 < int((~row.clean_only).sum()) <= 224


def test_a_run_without_images_is_the_text_run(trained: dict[str, RunConfig]) -> None:
    text, vision = (figures(trained[name]) for name in ("text", "first"))
    assert len(text) == 4 and vision == text
    expected = dict(parameters(trained["text"]))
    for name, value in parameters(trained["first"]):
        assert name.startswith(TOWER) or value.equal(expected.pop(name)), name
    assert not expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_changes_neither_the_curve_nor_the_weights(trained: dict[str, RunConfig], layout: str) -> None:
    assert_same_curve(trained["one"], trained[layout])
    assert_same_parameters(trained["one"], trained[layout])


@pytest.mark.parametrize("layout", ["tensor2_sequence", "pipeline2"])
def test_a_resumed_run_goes_on_bit_for_bit(trained: dict[str, RunConfig], layout: str) -> None:
    resumed, whole = trained[f"{layout}_resumed"], trained[layout]
    assert figures(resumed) == figures(whole)
    for (name, got), (_, expected) in zip(parameters(resumed), parameters(whole), strict=True):
        assert got.equal(expected), name


def test_every_layout_writes_the_tower_under_the_same_names(trained: dict[str, RunConfig]) -> None:
    shapes = [StoredWeights(step_folder(Path(trained[name].output), 4)).shapes for name in ("first", *LAYOUTS)]
    assert shapes[1:] == shapes[:-1]
    assert sum(name.startswith(TOWER) for name in shapes[0]) > 20


def test_a_frozen_tower_is_carried_along_and_not_decayed(trained: dict[str, RunConfig]) -> None:
    before = dict(parameters(trained["first"]))
    changed = {name for name, value in parameters(trained["frozen"]) if not value.equal(before[name])}
    assert not any(name.startswith("vision_tower.") for name in changed)
    assert {name.split(".")[0] for name in changed} == {
        *("multi_modal_projector", "embedding", "decoder", "output_layer")
    }
