"""What is settled before Slurm is asked; that Slurm itself is asked is tested in tests/slurm."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.config import RunConfig
from nld_train.errors import UserError
from nld_train.launch.placement import Placement
from nld_train.launch.site import read_site
from nld_train.launch.submit import (
    check_export,
    newest_training_job,
    plan_export,
    plan_submission,
    run_checks_in,
    submit_script,
)
from nld_train.run_folder.attempts import record_start, record_submission


def test_outputs_lie_in_the_sites_folder(site_file: Callable[..., Path]) -> None:
    site = read_site(site_file())
    run = recipe.load_recipe("nld_8b_stage1_ar")
    job = plan_submission(run, "nld_8b_stage1_ar", ["log.interval=5"], None, None, site)
    assert job.log == site.folder / run.output / "slurm" / "%j.log"
    assert (job.placement, job.overrides) == (Placement(32, 8), ("log.interval=5",))


def test_a_recipe_file_is_named_so_that_every_node_finds_it(site_file: Callable[..., Path]) -> None:
    job = plan_submission(recipe.load_recipe("nld_8b_stage1_ar"), "mine/run.py", [], None, None, read_site(site_file()))
    assert Path(job.recipe).is_absolute()


def test_the_doors_are_asked_from_the_sites_folder(site_file: Callable[..., Path]) -> None:
    site, seen = read_site(site_file()), []

    def door(run: RunConfig) -> None:
        seen.append((Path.cwd(), run.name))

    before = Path.cwd()
    run_checks_in(recipe.load_recipe("tiny_stage1_ar"), site, [door])
    assert seen == [(site.folder, "tiny_stage1_ar")] and Path.cwd() == before


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
    assert (export.export, export.placement) == (str(site.folder / "out/hf"), Placement(1, 1))
    (site.folder / "out/hf").mkdir(parents=True)
    with pytest.raises(UserError, match="exists already"):
        plan_export(job, "out/hf", site)


def test_an_export_that_would_be_refused_is_refused_now(prepared: Path) -> None:
    words = [f"data.tokenizer={prepared}/tokenizer"]
    check_export(recipe.load_recipe("tiny_stage1_ar", [*words, "model.vocab_size=400"]))
    with pytest.raises(UserError, match="vocabulary of 400; allowed: the model's 2,048"):
        check_export(recipe.load_recipe("tiny_stage1_ar", words))


def test_without_slurm_nothing_is_written(
    site_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = read_site(site_file())
    job = plan_submission(recipe.load_recipe("nld_8b_stage1_ar"), "nld_8b_stage1_ar", [], None, None, site)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch"):
        submit_script("#!/bin/bash\n", job, site)
    assert not job.log.parent.exists()
