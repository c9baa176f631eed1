"""`nld launch`: what it prints and writes holds no secret of the site file."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train import cli
from tests.launch.conftest import site_file

__all__ = ["site_file"]
SECRET = "hush-0123456789"
# Slurm's commands as a login node has them; sbatch takes every job.
SLURM = {"sbatch": "cat > /dev/null\ncase $1 in --parsable) echo 7 ;; esac\n"}


@pytest.fixture
def site(site_file: Callable[..., Path], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site with secrets, the run's data in its folder, and an sbatch."""
    path = site_file(WANDB_API_KEY=SECRET, HF_TOKEN=f"'{SECRET} 2'", NLD_GPUS_PER_NODE="0")
    path.chmod(0o600)
    (tmp_path / "bin").mkdir()
    for name, text in SLURM.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return path


def written(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


RUN = ["tiny_stage1_ar", "--nodes", "1", "--executor"]
ARRAY = ["data", "corpus", "--tokenizer", "tokenizer", "--output", "data/mix", "--shards", "2"]


@pytest.mark.parametrize(
    ("words", "dry"),
    [
        ([*RUN, "slurm", "--then-export", "out/hf"], True),
        ([*RUN, "slurm", "--then-export", "out/hf"], False),
        (ARRAY, True),
        (ARRAY, False),
        pytest.param([*RUN, "nemo-run"], True, marks=pytest.mark.slow),
    ],
)
def test_no_secret_is_printed_or_written(
    site: Path,
    prepared: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    dry: bool,
) -> None:
    folder = tmp_path / "checkout"
    if words[0] == "data":
        (folder / "corpus").mkdir()
        (folder / "corpus" / "a.txt").write_text("text")
        (folder / "tokenizer").symlink_to(prepared / "tokenizer")
    else:
        words = [*words[:1], f"data.blend={prepared}/data/a", f"data.tokenizer={prepared}/tokenizer", *words[1:]]
        words[1:1] = ["model.vocab_size=400", f"output={tmp_path}/run"]
    words = ["nld", "launch", *words, "--site", str(site), *(["--dry-run"] if dry else [])]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "nemo"))
    monkeypatch.setattr("sys.stdin", io.StringIO())  # the shells that nemo-run starts read along
    assert cli.main() == 0, capfd.readouterr()
    out, err = capfd.readouterr()
    assert SECRET not in out + err + caplog.text
    site.unlink()
    assert SECRET not in written(tmp_path)
    assert "export WANDB_API_KEY" in (out if dry else written(tmp_path)), "the jobs have it all the same"
