"""What is settled before Slurm is asked; that Slurm itself is asked is tested in tests/slurm."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.config import RunConfig
from nld_train.errors import UserError
from nld_train.launch.placement import Placement
from nld_train.launch.site import read_site
from nld_train.launch.submit import checked, newest_job, prepare, submit


def test_outputs_lie_in_the_sites_folder(site_file: Callable[..., Path]) -> None:
    site = read_site(site_file())
    run = recipe.load("nld_8b_stage1_ar")
    job = prepare(run, "nld_8b_stage1_ar", ["log.interval=5"], None, None, site)
    assert job.log == site.folder / run.output / "slurm" / "%j.log"
    assert (job.placement, job.overrides) == (Placement(32, 8), ("log.interval=5",))


def test_a_recipe_file_is_named_so_that_every_node_finds_it(site_file: Callable[..., Path]) -> None:
    job = prepare(recipe.load("nld_8b_stage1_ar"), "mine/run.py", [], None, None, read_site(site_file()))
    assert Path(job.recipe).is_absolute()


def test_the_doors_are_asked_from_the_sites_folder(site_file: Callable[..., Path]) -> None:
    site, seen = read_site(site_file()), []

    def door(run: RunConfig) -> None:
        seen.append((Path.cwd(), run.name))

    before = Path.cwd()
    checked(recipe.load("tiny_stage1_ar"), site, [door])
    assert seen == [(site.folder, "tiny_stage1_ar")] and Path.cwd() == before


def test_the_newest_job_of_a_run_is_found(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    for name in ("99.sbatch", "100.sbatch", "101.log"):
        (tmp_path / "slurm" / name).touch()
    assert newest_job(tmp_path) == "100"
    with pytest.raises(UserError, match="launch that run first"):
        newest_job(tmp_path / "none")


def test_without_slurm_nothing_is_written(
    site_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = read_site(site_file())
    job = prepare(recipe.load("nld_8b_stage1_ar"), "nld_8b_stage1_ar", [], None, None, site)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch"):
        submit("#!/bin/bash\n", job, site)
    assert not job.log.parent.exists()
