"""Would a run start? Asked without starting it: nothing is made, nothing renamed."""

from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.doctor.start_checks import check_start
from nld_train.errors import UserError
from nld_train.run_folder.checkpoints import checkpoint_file_names, checksum_files, write_checkpoint_manifest
from nld_train.run_folder.paths import step_folder
from nld_train.start.output_folder import open_output


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
