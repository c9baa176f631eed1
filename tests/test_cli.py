"""The `nld` command as people call it: every user error is one line on stderr and status 2."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nld_train import recipe


def nld(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nld_train.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_dry_runs(name: str) -> None:
    done = nld("train", name, "--dry-run")
    assert done.returncode == 0, done.stderr
    for said in ("parameters", "tokens", "FLOPs", "checkpoint"):
        assert said in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "tiny_stage1"), "did you mean tiny_stage1_ar"),
        (("train", "tiny_stage1_ar", "train.iteration=5"), "did you mean train.iterations"),
        (("train", "tiny_stage1_ar", "train.iterations=five"), "train.iterations"),
        (("train", "tiny_stage1_ar", "--nproc", "3"), "train.global_batch=8"),
        (("train", "tiny_stage1_ar", "parallel.tensor=8", "parallel.world_size=8"), "parallel.tensor=8"),
        (("train", "tiny_stage2_joint", "parallel.context=2"), "not built yet"),
        (("train", "nld_8b_stage1_ar"), "nld_8b_stage1_ar on 256 ranks"),
        (("train", "tiny_stage1_ar", "data.blend=nowhere/x"), "nowhere/x"),
        (("show", "visibility", "--length", "4000"), "256"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], said: str) -> None:
    done = nld(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("nld: ")
    assert done.stderr.count("\n") == 1


def test_data_of_another_tokenizer_is_refused(prepared: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    shutil.copytree(prepared / "tokenizer", other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    done = nld(
        "train", "tiny_stage1_ar", f"data.blend={prepared}/data/a", f"data.tokenizer={other}", f"output={tmp_path}/out"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "was made with tokenizer" in done.stderr
    assert not (tmp_path / "out").exists()


def test_overrides_stand_before_and_after_options() -> None:
    done = nld("train", "tiny_stage1_ar", "train.iterations=50", "--dry-run", "log.interval=7")
    assert done.returncode == 0
    assert done.stdout.count("<- override") == 2


def test_help_teaches_by_example() -> None:
    for words in (("--help",), ("train", "--help"), ("data", "prepare", "--help"), ("report", "--help")):
        assert "nld" in nld(*words).stdout


def test_visibility_is_drawn(tmp_path: Path) -> None:
    assert nld("show", "visibility", "--svg", tmp_path / "v.svg").returncode == 0
    assert (tmp_path / "v.svg").read_text().startswith("<svg")
