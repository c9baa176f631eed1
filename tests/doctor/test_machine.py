"""Slurm's commands and W&B's login, as this machine has them or could have."""

import subprocess
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.doctor.machine import (
    SLURM,
    cores_finding,
    shared_memory_finding,
    slurm_finding,
    total_memory,
    wandb_finding,
)


def test_cores_and_memory_are_said() -> None:
    assert cores_finding().verdict == "ok" and "core" in cores_finding().found
    assert total_memory() > 1e8


def test_no_shared_memory_fails(tmp_path: Path) -> None:
    assert shared_memory_finding(tmp_path / "none").verdict == "FAIL"
    assert "free in" in shared_memory_finding(tmp_path).found


def test_dockers_64_mb_of_shared_memory_are_noted(tmp_path: Path) -> None:
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", tmp_path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"NOT TESTED: no filesystem can be mounted here: {made.stderr.strip()}")
    try:
        found = shared_memory_finding(tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)
    assert found.verdict == "note" and found.found == f"0.0671 GB free in {tmp_path}"
    assert found.do == "give the container more (Docker: --shm-size 8g), or set data.workers=0"


def test_slurm_is_all_nothing_or_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm_finding().verdict == "ok" and "this machine alone" in slurm_finding().found
    (tmp_path / SLURM[0]).touch(mode=0o755)
    assert slurm_finding().verdict == "note" and SLURM[1] in slurm_finding().found
    for command in SLURM:
        (tmp_path / command).touch(mode=0o755)
    assert slurm_finding().verdict == "ok"


@pytest.mark.parametrize(
    ("mode", "logged_in", "verdict"),
    [
        ("auto", False, "note"),
        ("auto", True, "ok"),
        ("online", False, "note"),
        ("online", True, "ok"),
        ("required", False, "FAIL"),
        ("required", True, "ok"),
        ("offline", False, "ok"),
        ("disabled", False, "ok"),
    ],
)
def test_only_a_run_that_requires_wandb_needs_a_login(mode: str, logged_in: bool, verdict: str) -> None:
    assert wandb_finding(logged_in, recipe.load_recipe("tiny_stage1_ar", [f"log.wandb={mode}"])).verdict == verdict


def test_without_a_recipe_the_login_is_noted() -> None:
    assert wandb_finding(False, None).verdict == "note"
    assert wandb_finding(True, None).verdict == "ok"
