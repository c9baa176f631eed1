"""SFT as people run it: conversations in, from a Hugging Face folder, out as a Hugging Face folder that answers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nld_train.report.history import read_stage
from tests.convert.conftest import export, random_output
from tests.distributed.ranks import on, small_run

pytestmark = [pytest.mark.megatron, pytest.mark.long]

MODEL = ["layers=4", "hidden=64", "ffn=128", "heads=4", "kv_heads=2", "head_dim=16", "vocab_size=400"]
ROPE = ["theta=1e4", "factor=4.0", "original_max_position=16"]
SHORT = ["optimizer.warmup_iterations=0", "optimizer.decay_iterations=0", "log.interval=1", "train.eval_batches=1"]


def nld(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nld_train.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat file, chat.*, and a Hugging Face folder with random weights, base."""
    folder = tmp_path_factory.mktemp("sft")
    turns = [(f"{a} + {b}", f"{a + b}") for a in range(12) for b in range(12)]
    lines = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in turns
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    nld(
        "data",
        "prepare-chat",
        folder / "chat.jsonl",
        "--tokenizer",
        prepared / "tokenizer",
        "--output",
        folder / "chat",
    )
    run = small_run("random", folder, alpha=0.3, init=None, parallel=on(1))
    run = replace(run, data=replace(run.data, tokenizer=str(prepared / "tokenizer")))
    export(random_output(run, torch.float32), folder / "base", dtype=torch.float32)
    return folder


def train(folder: Path, prepared: Path, iterations: int) -> subprocess.CompletedProcess[str]:
    model = [f"model.{setting}" for setting in MODEL] + [f"model.rope.{setting}" for setting in ROPE]
    data = [f"data.blend={folder}/chat", f"data.tokenizer={prepared}/tokenizer", "data.sequence_length=64"]
    places = [f"init={folder}/base", f"output={folder}/run", f"train.iterations={iterations}"]
    return nld("train", "tiny_sft", *model, *data, *SHORT, *places)


@pytest.fixture(scope="module")
def first(folder: Path, prepared: Path) -> subprocess.CompletedProcess[str]:
    return train(folder, prepared, 2)


def test_a_start_tells_what_it_packed_and_imports_its_weights(folder: Path, first) -> None:
    assert "chat, train: 137 conversations in" in first.stderr
    assert f"importing {folder}/base into {folder}/run/init" in first.stderr
    assert len(list((folder / "run" / "data_index").glob("chat-*"))) == 1


def test_the_same_command_resumes(folder: Path, prepared: Path, first) -> None:
    again = train(folder, prepared, 3)
    assert "resuming tiny_sft at step 2" in again.stderr and "importing" not in again.stderr
    assert [entry["step"] for entry in read_stage(folder / "run").train] == [1, 2, 3]


def test_its_export_ends_with_a_turn(folder: Path, first) -> None:
    nld("convert", "export", folder / "run", "--to", folder / "hf", "--no-verify")
    assert json.loads((folder / "hf" / "generation_config.json").read_text())["eos_token_id"] == 11
    assert "<|im_end|>" in (folder / "hf" / "chat_template.jinja").read_text()
