"""`nld train` as people call it: torchrun, progress on the terminal, logs in the folder, resume, and the report."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nld_train.report.history import read_stage

pytestmark = pytest.mark.megatron

SMALL = ["model.layers=2", "model.hidden=64", "model.ffn=128", "data.sequence_length=64", "diffusion.block_size=8"]
SHORT = ["optimizer.warmup_iterations=1", "optimizer.decay_iterations=0", "log.interval=1", "checkpoint.interval=100"]


def train(prepared: Path, output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    data = [f"data.blend={prepared}/data/a", f"data.tokenizer={prepared}/tokenizer", "model.vocab_size=400"]
    words = ["train", "tiny_stage1_ar", *SMALL, *SHORT, *data, f"output={output}", *overrides]
    command = [sys.executable, "-m", "nld_train.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flow") / "run"


def test_a_run_shows_its_progress(prepared: Path, output: Path) -> None:
    done = train(prepared, output, "train.iterations=3", "train.eval_batches=1")
    assert done.returncode == 0, done.stdout + done.stderr
    line = r"step +3/3  0:00 left +[\d,]+ tokens/s  AR loss \d\.\d{4}  grad norm \d+\.\d{3}  lr 3\.00e-03"
    assert re.search(line, done.stdout)
    assert len(re.findall(r"validation  AR loss", done.stdout)) >= 2, "before the first step and after the last"
    assert done.stderr == "", "what libraries print goes to the logs"
    assert (output / "logs" / "rank_0.log").stat().st_size > 0
    assert list((output / "tensorboard").glob("events*"))


def test_a_finished_run_says_so(prepared: Path, output: Path) -> None:
    done = train(prepared, output, "train.iterations=3", "train.eval_batches=1")
    assert done.returncode == 0
    assert "is finished: step 3" in done.stderr


def test_more_iterations_resume_it(prepared: Path, output: Path) -> None:
    done = train(prepared, output, "train.iterations=5", "train.eval_batches=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming tiny_stage1_ar at step 3" in done.stderr
    assert [entry["step"] for entry in read_stage(output).train] == [1, 2, 3, 4, 5]


def test_a_rank_that_fails_ends_the_run_with_its_reason(prepared: Path, output: Path) -> None:
    shutil.rmtree(output / "tensorboard")
    (output / "tensorboard").write_text("no folder")
    done = train(prepared, output, "train.iterations=6", "train.eval_batches=1")
    assert done.returncode == 1
    assert re.search(r"rank \d failed: \w+.*tensorboard", done.stdout)
    assert "full log:" in done.stdout
