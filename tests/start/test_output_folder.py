"""What a start finds in its output folder: nothing, its own checkpoint, or a foreign one."""

from dataclasses import replace
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.config import RunConfig
from nld_train.errors import UserError
from nld_train.run_folder.paths import TRACKER, checkpoints_folder
from nld_train.run_folder.refusal import read_refusal, record_refusal
from nld_train.start.output_folder import open_output
from tests.saved import flip, save_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return recipe.load_recipe("tiny_stage1_ar", [f"output={tmp_path}/run"])


def test_a_new_folder_starts_fresh_and_records_the_run(run: RunConfig) -> None:
    assert open_output(run) is None
    assert recipe.run_from_json(Path(run.output, "run.json").read_text()) == run


def test_a_start_forgets_what_the_last_one_was_refused_for(run: RunConfig) -> None:
    open_output(run)
    record_refusal(Path(run.output), "out of memory on the largest batch")
    open_output(run)
    assert read_refusal(Path(run.output)) is None


def test_an_own_checkpoint_is_resumed(run: RunConfig) -> None:
    open_output(run)
    save_checkpoint(run.output, 30)
    assert open_output(run) == 30


def test_more_steps_another_layout_and_other_logging_may_be_asked_for_on_resume(run: RunConfig, caplog) -> None:
    caplog.set_level("INFO")
    open_output(run)
    save_checkpoint(run.output, 30)
    more = replace(run, train=replace(run.train, iterations=900), log=replace(run.log, interval=1))
    more = replace(more, data=replace(run.data, workers=0), optimizer=replace(run.optimizer, clip_grad=2.0))
    assert open_output(replace(more, parallel=replace(run.parallel, world_size=1))) == 30
    for taken in ("train.iterations was", "log.interval was", "data.workers was", "clip_grad was 1.0, is 2.0"):
        assert taken in caplog.text


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.layers=8", "model.layers was 4, is 8"),
        ("diffusion.noise_seed=9", "diffusion.noise_seed was 1234, is 9"),
        ("data.shuffle_seed=9", "data.shuffle_seed was 1234, is 9"),
        ("train.global_batch=16", "train.global_batch=16"),
        ("optimizer.lr=2e-3", "optimizer.lr was 0.003, is 0.002"),
        ("optimizer.weight_decay=0", "optimizer.weight_decay was 0.1, is 0.0"),
        ("optimizer.beta2=0.99", "optimizer.beta2 was 0.95, is 0.99"),
        ("parallel.distributed_optimizer=false", "parallel.distributed_optimizer was True, is False"),
        ("init=elsewhere", "init was None, is 'elsewhere'"),
    ],
)
def test_another_runs_checkpoint_is_refused(run: RunConfig, override: str, named: str) -> None:
    open_output(run)
    save_checkpoint(run.output, 30)
    before = Path(run.output, "run.json").read_text()
    with pytest.raises(UserError, match=named):
        open_output(recipe.load_recipe("tiny_stage1_ar", [f"output={run.output}", override]))
    assert Path(run.output, "run.json").read_text() == before


def test_a_checkpoint_of_unknown_origin_is_refused(run: RunConfig) -> None:
    save_checkpoint(run.output, 30)
    with pytest.raises(UserError, match="run.json is missing"):
        open_output(run)


def test_a_tracker_that_names_another_step_is_put_right(run: RunConfig) -> None:
    open_output(run)
    save_checkpoint(run.output, 30)
    (checkpoints_folder(Path(run.output)) / TRACKER).write_text("40")
    assert open_output(run) == 30
    assert (checkpoints_folder(Path(run.output)) / TRACKER).read_text() == "30"


def test_missing_weights_to_start_from_are_refused_and_nothing_is_made(tmp_path: Path) -> None:
    joint = recipe.load_recipe("tiny_stage2_joint", [f"output={tmp_path}/joint", f"init={tmp_path}/none"])
    with pytest.raises(UserError, match="no checkpoint in"):
        open_output(joint)
    assert not Path(joint.output).exists()


def test_weights_of_another_shape_are_refused(run: RunConfig, tmp_path: Path) -> None:
    open_output(run)
    save_checkpoint(run.output, 30)
    other = recipe.load_recipe(
        "tiny_stage2_joint", [f"output={tmp_path}/joint", f"init={run.output}", "model.layers=8"]
    )
    with pytest.raises(UserError, match="layers=4 there, 8 here"):
        open_output(other)


def test_weights_of_the_same_shape_are_a_start(run: RunConfig, tmp_path: Path) -> None:
    open_output(run)
    save_checkpoint(run.output, 30)
    assert (
        open_output(recipe.load_recipe("tiny_stage2_joint", [f"output={tmp_path}/joint", f"init={run.output}"])) is None
    )


def test_damaged_weights_are_no_start(run: RunConfig, tmp_path: Path) -> None:
    open_output(run)
    flip(save_checkpoint(run.output, 30) / "__0_0.distcp")
    with pytest.raises(UserError, match="iter_0000030/__0_0.distcp is not what was saved"):
        open_output(recipe.load_recipe("tiny_stage2_joint", [f"output={tmp_path}/joint", f"init={run.output}"]))


def test_a_fresh_start_forgets_the_curve_of_one_that_never_saved(run: RunConfig) -> None:
    open_output(run)
    metrics = Path(run.output, "metrics.jsonl")
    metrics.write_text('{"step": 1, "kind": "train", "AR loss": 5.0}\n')
    assert open_output(run) is None
    assert metrics.read_text() == ""
