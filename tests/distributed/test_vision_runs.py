"""Runs with a vision tower through Megatron-Bridge's loop: saved, resumed and started from under every layout.

Their conversations have no images, so that a text run beside them says what they must log.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.config import ParallelConfig, RunConfig
from nld_train.convert.torch_dist import StoredWeights
from nld_train.run_folder.paths import step_folder
from tests.chat_files import on_conversations
from tests.distributed.alike import assert_same_curve, assert_same_parameters, parameters
from tests.distributed.ranks import figures, on, small_run, train_together, with_train
from tests.model.images import VISION

pytestmark = pytest.mark.megatron

LAYOUTS: dict[str, ParallelConfig] = {
    "tensor2_sequence": on(2, tensor=2, sequence=True, recompute="full"),
    "pipeline2": on(2, pipeline=2),
    "data2": on(2),
}
TOWER = ("vision_tower.", "multi_modal_projector.")


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """All runs of this file, trained on one rank, then on two."""
    folder = tmp_path_factory.mktemp("vision_runs")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)

    def run(name: str, init: str | None, parallel: ParallelConfig, **section: object) -> RunConfig:
        made = on_conversations(small_run(name, folder, alpha=0.3, init=init, parallel=parallel), folder)
        return with_train(replace(made, **{"vision": VISION, **section}), eval_batches=0, eval_decode=0)

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
