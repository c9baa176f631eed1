"""The trained sampler as people make it: trajectories of an export, the run, what it puts beside it, decoding."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.convert.conftest import exported, random_run

__all__ = ["exported", "random_run"]
pytestmark = pytest.mark.megatron

TINY = ["sampler.layers=1", "sampler.width=16", "sampler.ffn=16", "sampler.heads=2", "sampler.patience=1"]
SHORT = [
    "train.iterations=40",
    "train.eval_interval=2",
    "checkpoint.interval=2",
    "train.eval_batches=2",
    "log.interval=2",
]
BATCH = ["train.global_batch=8", "train.micro_batch=4", "parallel.world_size=1", "data.split=70,30,0"]
# So fast that the network is ruined: its second evaluation is hardly its best.
RUIN = ["optimizer.lr=3", "optimizer.min_lr=1", "optimizer.warmup_iterations=0", "optimizer.decay_iterations=0"]

Said = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def folder(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, and prompts beside it."""
    folder = tmp_path_factory.mktemp("flow_sampler")
    shutil.copytree(exported, folder / "hf")
    texts = ["def main", "import os", "class A:", "return x", "for i in", "self.", "if not", "while True"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return folder


@pytest.fixture(scope="module")
def nld(folder: Path) -> Callable[..., Said]:
    def run(*words: str) -> Said:
        command = [sys.executable, "-m", "nld_train.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])

    return run


@pytest.mark.long
def test_from_trajectories_to_text(folder: Path, nld: Callable[..., Said]) -> None:
    hf, trajectories, output = (str(folder / name) for name in ("hf", "trajectories", "run"))
    asked = ["--prompts", str(folder / "prompts.jsonl"), "--max-new-tokens", "16", "--block", "4,8"]
    done = nld("sampler", "collect", hf, *asked, "--output", trajectories)
    assert done.returncode == 0, done.stderr
    own = [
        f"data.blend={trajectories}",
        f"data.tokenizer={hf}",
        "model.vocab_size=400",
        "model.hidden=64",
        f"output={output}",
    ]
    words = ["train", "tiny_sampler", *own, *TINY, *SHORT, *BATCH, *RUIN]
    done = nld(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AUC of confidence" in done.stdout and "no better in 1 evaluations: the run is finished" in done.stdout
    ended = json.loads((folder / "run" / "early_end.json").read_text())
    assert ended["step"] < 40
    again = nld(*words)
    assert again.returncode == 0 and f"is finished: step {ended['step']} of 40" in again.stderr
    done = nld("convert", "sampler", output, "--to", hf)
    assert done.returncode == 0 and f"of step {ended['best step']} of" in done.stderr
    decode = [
        "--model",
        hf,
        "--mode",
        "diffusion",
        "--prompt",
        "def main",
        "--max-new-tokens",
        "16",
        "--block-length",
        "8",
    ]
    done = nld("generate", *decode, "--sampler")
    assert done.returncode == 0, done.stderr
    done = nld("report", output)
    assert done.returncode == 0 and "held-out AUC" in done.stdout


def test_it_is_no_model_to_start_from(folder: Path, nld: Callable[..., Said]) -> None:
    done = nld(
        "train", "tiny_stage2_joint", f"init={folder / 'run'}", f"output={folder / 'next'}", "data.blend=nothing"
    )
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
