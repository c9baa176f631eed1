"""Would a run start? Asked without starting it: nothing is made, nothing renamed."""

from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.config import RunConfig
from nld_train.doctor.start_checks import check_ranks, check_start
from nld_train.errors import UserError
from nld_train.run_folder.checkpoints import checkpoint_file_names, checksum_files, write_checkpoint_manifest
from nld_train.run_folder.paths import RUN, step_folder
from nld_train.start.output_folder import open_output
from tests.saved import save_checkpoint


def test_a_fresh_run_is_accepted_and_nothing_is_made(tmp_path: Path) -> None:
    check_start(recipe.load_recipe("tiny_stage1_ar", [f"output={tmp_path}/run"]))
    assert not (tmp_path / "run").exists()


def test_missing_weights_to_start_from_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint in"):
        check_start(recipe.load_recipe("tiny_stage2_joint", [f"output={tmp_path}/run", f"init={tmp_path}/none"]))


def test_another_runs_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run = recipe.load_recipe("tiny_stage1_ar", [f"output={tmp_path}/run"])
    open_output(run)
    folder = step_folder(tmp_path / "run", 5)
    folder.mkdir(parents=True)
    (folder / "common.pt").write_bytes(b"weights")
    write_checkpoint_manifest(folder, checksum_files(folder, checkpoint_file_names(folder)))
    check_start(run)
    (folder / "common.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="alpha was 0.0, is 0.3"):
        check_start(recipe.load_recipe("tiny_stage1_ar", [f"output={tmp_path}/run", "diffusion.alpha=0.3"]))
    assert (folder / "common.pt").read_bytes() == b"damaged"


def finished_stage(tmp_path: Path) -> str:
    """The output folder of a stage 1 with a checkpoint."""
    run = recipe.load_recipe("tiny_stage1_ar", [f"output={tmp_path}/one"])
    open_output(run)
    save_checkpoint(run.output, 5)
    return run.output


def second_stage(tmp_path: Path, init: str, *overrides: str, carried: bool = True) -> RunConfig:
    words = [f"output={tmp_path}/two", f"init={init}", f"init_optimizer={carried}", *overrides]
    return recipe.load_recipe("tiny_stage2_joint", words)


def test_an_optimizer_is_carried_over_from_a_run_under_the_same_rates(tmp_path: Path) -> None:
    init = finished_stage(tmp_path)
    check_start(second_stage(tmp_path, init))
    with pytest.raises(UserError, match=r"optimizer.lr=0.003 there, 0.002 here; train.precision=fp32 there, bf16 here"):
        check_start(second_stage(tmp_path, init, "optimizer.lr=2e-3", "train.precision=bf16"))


def test_weights_alone_have_no_optimizer_to_carry_over(tmp_path: Path) -> None:
    init = finished_stage(tmp_path)
    Path(init, RUN).unlink()
    with pytest.raises(UserError, match="which has no optimizer of this run's weights"):
        check_start(second_stage(tmp_path, init))
    check_start(second_stage(tmp_path, init, carried=False))
    with pytest.raises(UserError, match="init_optimizer=True without init"):
        second_stage(tmp_path, "none")


def test_how_rows_are_fetched_and_checked_may_change_on_a_resume(tmp_path: Path) -> None:
    init = finished_stage(tmp_path)
    words = [f"output={init}", "data.workers=0", "data.verify=never"]
    check_start(recipe.load_recipe("tiny_stage1_ar", words))
    with pytest.raises(UserError, match="data.skip_rows was 0, is 8"):
        check_start(recipe.load_recipe("tiny_stage1_ar", [*words, "data.skip_rows=8"]))


def test_fp8_is_refused_where_no_gpu_computes_it() -> None:
    settings = ["train.precision=bf16", "train.fp8=tensorwise", "parallel.world_size=1"]
    with pytest.raises(UserError, match="train.fp8=tensorwise on a machine without a GPU"):
        check_ranks(recipe.load_recipe("tiny_stage1_ar", settings))
