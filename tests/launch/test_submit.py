"""What is settled before Slurm is asked; that Slurm itself is asked is tested in tests/slurm."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.errors import UserError
from nld_train.launch.placement import Placement
from nld_train.launch.site import read_site
from nld_train.launch.submit import (
    check_before_submission,
    check_export,
    newest_training_job,
    plan_export,
    plan_submission,
    submit_script,
)
from nld_train.run_folder.attempts import record_start, record_submission


def test_outputs_lie_in_the_sites_folder(site_file: Callable[..., Path]) -> None:
    site = read_site(site_file())
    run = recipe.load_recipe("nld_8b_stage1_ar")
    job = plan_submission(run, "nld_8b_stage1_ar", ["log.interval=5"], None, None, site)
    assert job.log == site.job_folder / run.output / "slurm" / "%j.log"
    assert (job.placement, job.overrides) == (Placement(32, 8), ("log.interval=5",))


def test_a_recipe_file_is_named_so_that_every_node_finds_it(site_file: Callable[..., Path]) -> None:
    job = plan_submission(recipe.load_recipe("nld_8b_stage1_ar"), "mine/run.py", [], None, None, read_site(site_file()))
    assert Path(job.recipe).is_absolute()


def test_the_start_checks_are_made_in_the_sites_folder(site_file: Callable[..., Path], prepared: Path) -> None:
    """The data are found there by a relative path; weights are looked for unless a job before makes them."""
    site, before = read_site(site_file()), Path.cwd()
    words = ["data.blend=data/a", "data.tokenizer=tokenizer", "model.vocab_size=400", "init=out/before"]
    run = recipe.load_recipe("tiny_stage2_joint", words)
    waiting = plan_submission(run, "tiny_stage2_joint", words, 1, "7", site)
    with pytest.raises(UserError, match="data/a.idx"):
        check_before_submission(run, waiting, None, site)
    shutil.copytree(prepared, site.job_folder, dirs_exist_ok=True)
    check_before_submission(run, waiting, plan_export(waiting, "out/hf", site), site)
    with pytest.raises(UserError, match="init='out/before': no checkpoint"):
        check_before_submission(run, replace(waiting, after=None), None, site)
    assert Path.cwd() == before


def test_the_newest_job_of_a_run_is_found(tmp_path: Path) -> None:
    record_submission(tmp_path, "99", None)
    record_submission(tmp_path, "100", None)
    record_submission(tmp_path, "101", "out/hf")
    assert newest_training_job(tmp_path) == "100", "an export trains nothing"
    record_start(tmp_path, 0, ("n1",), {"SLURM_JOB_ID": "102"})
    assert newest_training_job(tmp_path) == "102", "submitted by hand"
    with pytest.raises(UserError, match="launch that run first"):
        newest_training_job(tmp_path / "none")


def test_an_export_stays_out_of_a_folder_that_is_there(site_file: Callable[..., Path]) -> None:
    site = read_site(site_file())
    job = plan_submission(recipe.load_recipe("nld_8b_sft"), "nld_8b_sft", [], None, None, site)
    export = plan_export(job, "out/hf", site)
    assert (export.export, export.placement) == (str(site.job_folder / "out/hf"), Placement(1, 1))
    (site.job_folder / "out/hf").mkdir(parents=True)
    with pytest.raises(UserError, match="exists already"):
        plan_export(job, "out/hf", site)


def test_an_export_that_would_be_refused_is_refused_now(prepared: Path) -> None:
    words = [f"data.tokenizer={prepared}/tokenizer"]
    check_export(recipe.load_recipe("tiny_stage1_ar", [*words, "model.vocab_size=400"]))
    check_export(recipe.load_recipe("tiny_stage1_ar", words))  # padded: the model has ids that the tokenizer lacks
    with pytest.raises(UserError, match="vocabulary of 400; allowed: at most the model's 384"):
        check_export(recipe.load_recipe("tiny_stage1_ar", [*words, "model.vocab_size=384"]))


def test_without_slurm_nothing_is_written(
    site_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = read_site(site_file())
    job = plan_submission(recipe.load_recipe("nld_8b_stage1_ar"), "nld_8b_stage1_ar", [], None, None, site)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch"):
        submit_script("#!/bin/bash\n", job, site)
    assert not job.log.parent.exists()
