"""`nld doctor RECIPE --rehearse` on real data with a tiny recipe, and what its findings say of trouble."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.cli import main
from nld_train.config import RunConfig
from nld_train.doctor.accelerator import Gpus
from nld_train.plan.memory import worst_stage
from nld_train.recipe import load_recipe
from nld_train.rehearsal.memory_table import MemoryComparison
from nld_train.rehearsal.rehearse import (
    kernels_finding,
    memory_finding,
    ranks_finding,
    short_run,
    training_finding,
)
from tests.rehearsal.test_rank_share import made_up_shares

NO_GPU = Gpus(names=(), memory=(), reported=(), driver="", cuda="", nccl="", hidden=False)


def overrides(folder: Path) -> list[str]:
    data = [f"data.blend=0.7:{folder}/data/a,0.3:{folder}/data/b", f"data.tokenizer={folder}/tokenizer"]
    return [
        *data,
        f"output={folder}/out",
        "init=none",
        "train.iterations=200",
        "data.skip_rows=0",
        "log.wandb=disabled",
    ]


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.megatron
@pytest.mark.long
def test_a_tiny_run_is_rehearsed_whole(folder: Path) -> None:
    words = ["doctor", "tiny_stage2_joint", "--rehearse", *overrides(folder)]
    done = subprocess.run([sys.executable, "-m", "nld_train.cli", *words], capture_output=True, text=True, check=False)
    lines = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    for check, said in (
        ("rehearsed ranks", "weights whole"),
        ("rehearsed memory", "of the plan"),
        ("rehearsed kernels", "for an H100"),
        ("rehearsed training", "2 steps, saved, 2 more"),
    ):
        assert said in lines[check] and " FAIL " not in lines[check], lines[check]
    assert not (folder / "out").exists(), "the run's own output is not touched"


def test_a_training_that_fails_says_why(folder: Path) -> None:
    run = load_recipe("tiny_stage2_joint", overrides(folder))
    (folder / "data/a.bin").write_bytes(b"")
    found = training_finding(run, NO_GPU)
    assert found.verdict == "FAIL" and "status 2" in found.found


def test_a_rank_that_fails_is_quoted_and_not_the_log_that_is_gone(folder: Path, monkeypatch) -> None:
    script = folder / "python"
    said = "echo 'rank 0: out of memory on the largest batch'; echo '  full log: /tmp/gone'; echo 'x failed; see y' >&2"
    script.write_text(f"#!/bin/sh\n{said}\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    found = training_finding(load_recipe("tiny_stage2_joint", overrides(folder)), NO_GPU)
    assert (found.verdict, found.found) == ("FAIL", "status 2: rank 0: out of memory on the largest batch")


def test_what_does_not_fit_one_node_is_left_out_and_said(folder: Path) -> None:
    run = load_recipe("nld_14b_sft")  # tensor 8
    assert training_finding(run, NO_GPU).verdict == "note"
    assert "tensor x context = 8" in training_finding(run, NO_GPU).found
    assert "frozen model" in training_finding(load_recipe("nld_8b_drafter"), NO_GPU).found


def test_kernels_that_cannot_be_compiled_ahead_are_left_out_and_said() -> None:
    other = load_recipe("nld_8b_sft", ["train.attention=te"])
    assert kernels_finding(other).verdict == "note" and "train.attention=te" in kernels_finding(other).found


def test_the_short_run_keeps_the_width_and_the_cut_of_matrices() -> None:
    run = load_recipe("nld_8b_sft")
    short = short_run(run, "out/x", 8, 2)
    assert short.model == replace(run.model, layers=2) and short.parallel.tensor == 4
    assert (short.parallel.data, short.train.global_batch, short.train.iterations) == (2, 2, 2)


def test_ranks_that_disagree_fail() -> None:
    cut = ["parallel.world_size=4", "parallel.tensor=2", "train.global_batch=4", "train.micro_batch=1"]
    run = load_recipe("tiny_stage2_joint", cut)
    shares = made_up_shares(run)
    assert ranks_finding(run, shares).verdict == "ok"
    shares[0]["rows"][0] = [7, 8]
    assert ranks_finding(run, shares).verdict == "FAIL"


@pytest.mark.parametrize(("times", "verdict"), [(1.0, "ok"), (1.2, "note"), (9.0, "FAIL")])
def test_memory_is_judged_against_the_plan_and_the_gpu(times: float, verdict: str) -> None:
    run: RunConfig = load_recipe("nld_3b_sft")
    planned = worst_stage(run)
    found = MemoryComparison(run.name, planned, {"weights": int(planned.total * times)})
    assert memory_finding(found, NO_GPU).verdict == verdict
    tight = replace(NO_GPU, names=("H100",), memory=(int(1e9),))
    assert memory_finding(found, tight).verdict == "FAIL"


@pytest.mark.parametrize(
    ("words", "got"), [([], "without a recipe"), (["tiny_sft", "--meet", "localhost:1"], "with --meet")], ids=str
)
def test_one_recipe_is_rehearsed_on_one_node(
    words: list[str], got: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nld", "doctor", *words, "--rehearse"])
    assert main() == 2
    assert f"--rehearse {got}" in capsys.readouterr().err
