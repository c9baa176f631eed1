"""`nld sampler collect` from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nld_train import cli
from nld_train.data.tokenizer import load_tokenizer
from nld_train.evaluation.evaluated_model import ModelChoice, open_evaluated_model
from nld_train.trajectories.stored_parts import read_part, read_pca
from tests.sampler.slow_sampler import slow_way

TEXTS = ["def main", "import os, sys", "class A:", "def main", "return", "for name in"]
ROWS = [{"prompt": text, "reference": "(self, value):\n    return 1\n"} if i == 1 else {"prompt": text}
        for i, text in enumerate(TEXTS)]  # fmt: skip
WORDS = ["--max-new-tokens", "8", "--block", "4,8", "--part", "2"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def command(folder: Path, prompts: Path, capsys, monkeypatch):
    """Runs the command with more words. Returns: status, and what was printed."""

    def run(*words: str) -> tuple[int, str]:
        given = ["sampler", "collect", str(folder), "--prompts", str(prompts), *words]
        monkeypatch.setattr("sys.argv", ["nld", *given])
        status = cli.main()
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(command, tmp_path: Path) -> Path:
    """A collection by one process: 5 distinct prompts in 3 parts."""
    status, printed = command(*WORDS, "--output", str(tmp_path / "whole"))
    assert status == 0 and "3 of 3 parts, and the index" in printed, printed
    assert "6 prompts, 1 of them duplicates" in printed and "bytes a step: " in printed
    return tmp_path / "whole"


def test_parts_hold_the_trajectories_of_the_prompts(whole: Path, folder: Path) -> None:
    """The first block of every prompt, of both policies, is the slow way; the numbers are those of distinct prompts."""
    evaluated = open_evaluated_model(ModelChoice(folder))
    model, tokenizer = evaluated.model, evaluated.tokenizer
    assert read_pca(whole).coordinates.shape == (400, 32)
    found = [read_part(whole, number) for number in range(3)]
    kept = [row for i, row in enumerate(ROWS) if i != 3]
    for group in ("confidence.4", "confidence.8", "hybrid.4", "hybrid.8"):
        placed = [each for part in found for each in part[group]]
        assert sorted({each.prompt for each in placed}) == list(range(5)) and {each.turn for each in placed} == {1}
        length = int(group[-1])
        for each in placed:
            if each.block:
                continue
            text = tokenizer.encode(kept[each.prompt]["prompt"]).tolist()
            truth = None
            if group.startswith("hybrid"):
                if "reference" not in kept[each.prompt]:
                    continue
                truth = tokenizer.encode(kept[each.prompt]["reference"]).tolist()
            slow = slow_way(model, text, length, truth, mask=100)
            assert each.trajectory.final.tolist() == slow.final
            want = [seen[0] for step in slow.steps for seen in step if seen is not None]
            assert each.trajectory.top.tolist() == want


def test_hybrid_blocks_stand_where_the_truth_does(whole: Path, folder: Path) -> None:
    """A reference of 8 tokens or more has blocks for all 8 new tokens; the index counts what the parts hold."""
    length = len(load_tokenizer(folder).encode(ROWS[1]["reference"]))
    blocks = [each.block for each in read_part(whole, 0)["hybrid.4"] if each.prompt == 1]
    assert blocks == list(range(-(-min(length, 8) // 4)))
    index = json.loads((whole / "index.json").read_text())
    for group, totals in index["totals"].items():
        parts = [read_part(whole, number).get(group, []) for number in range(3)]
        assert totals["trajectories"] == sum(map(len, parts))
        assert totals["positions"] == sum(len(each.trajectory.top) for part in parts for each in part)
    manifest = json.loads((whole / "manifest.json").read_text())
    assert (manifest["prompts_read"], manifest["duplicates"], manifest["parts"]) == (6, 1, 3)


def test_shards_write_what_one_process_does(command, whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Into one folder; or each into its own, and the files put together."""

    def merge(target: Path) -> tuple[int, bool]:
        monkeypatch.setattr("sys.argv", ["nld", "sampler", "merge", str(target)])
        return cli.main(), "lacks 1 of 3 parts" in capsys.readouterr().err

    together = tmp_path / "together"
    status, printed = command(*WORDS, "--output", str(together), "--shard", "2/2")
    assert status == 0 and "1 of 3 parts" in printed and not (together / "index.json").exists()
    assert command(*WORDS, "--output", str(together), "--shard", "1/2")[0] == 0
    assert contents(together) == contents(whole)
    alone = tmp_path / "alone"
    assert command(*WORDS, "--output", str(alone), "--shard", "1/2")[0] == 0
    assert merge(alone) == (2, True), "a part is missing"
    (alone / "part-00001.safetensors").write_bytes((together / "part-00001.safetensors").read_bytes())
    (alone / "part-00001.json").write_bytes((together / "part-00001.json").read_bytes())
    assert merge(alone) == (0, False)
    assert contents(alone) == contents(whole)
    with (alone / "part-00002.safetensors").open("ab") as file:
        file.write(b"x")
    assert merge(alone)[0] == 2


def test_killed_and_gone_on_with_it_gives_the_same_bytes(command, whole, folder, prompts, tmp_path: Path) -> None:
    target = tmp_path / "killed"
    words = ["sampler", "collect", str(folder), "--prompts", str(prompts), *WORDS, "--output", str(target)]
    process = subprocess.Popen([sys.executable, "-m", "nld_train.cli", *words], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (target / "part-00000.json").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (target / "part-00000.json").exists() and not (target / "index.json").exists()
    first = (target / "part-00000.safetensors").stat().st_mtime_ns
    assert command(*WORDS, "--output", str(target))[0] == 0
    left = {name: content for name, content in contents(target).items() if ".partial-" not in name}
    assert left == contents(whole)
    assert (target / "part-00000.safetensors").stat().st_mtime_ns == first


def test_other_settings_are_refused_or_begin_anew(command, whole: Path) -> None:
    before = contents(whole)
    status, printed = command(*WORDS, "--output", str(whole), "--policy", "hybrid")
    assert status == 2 and "holds another collection: policies=['confidence', 'hybrid'], here ['hybrid']" in printed
    assert contents(whole) == before
    status, printed = command(*WORDS, "--output", str(whole), "--part", "9", "--overwrite")
    assert status == 0 and len(list(whole.glob("part-*.json"))) == 1
    status, printed = command(*WORDS, "--output", str(whole), "--part", "9")
    assert status == 0 and "0 contexts to do" in printed


def test_a_dry_run_says_the_size_and_writes_nothing(command, tmp_path: Path) -> None:
    status, printed = command("--max-new-tokens", "32", "--output", str(tmp_path / "dry"), "--dry-run")
    assert status == 0 and not (tmp_path / "dry").exists()
    assert "bytes a step: 153 at block 8, 583 at block 32" in printed
    assert "20,000,000 trajectories of the 8B at these block lengths: 380,000,000 steps, 191.3 GB on disk" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "random"], "--policy random; allowed: confidence and hybrid"),
        (["--policy", ""], "--policy ; allowed: confidence and hybrid"),
        (["--block", "3"], "--max-new-tokens 8 with --block 3; allowed: multiples of 3; do: use 9"),
        (["--part", "0"], "--part 0"),
        (["--shard", "4/4"], "--shard 4/4 of 3 parts holds none"),
        (["--shard", "1/2", "--overwrite"], "--overwrite with --shard 1/2"),
        (["--adapter", "lora"], "--adapter lora"),
        (["--thinking"], "--thinking without --chat"),
        (["--prompts", "none.jsonl"], "no file none.jsonl"),
        (["--step", "3"], "runs alone have steps"),
        (["--max-new-tokens", "1024000000", "--block", "1024"], "are free; allowed: a disk with room"),
        (["--max-new-tokens", "128", "--block", "8"], "positions"),
    ],
)
def test_bad_input_is_one_line(command, words, said, tmp_path: Path) -> None:
    status, printed = command(*WORDS, "--output", str(tmp_path / "out"), *words)
    assert status == 2 and said in printed.splitlines()[-1], printed
    assert sum(line.startswith("nld: ") for line in printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_trajectories_is_asked_for(command) -> None:
    status, printed = command(*WORDS)
    assert status == 2 and printed.startswith("nld: no --output")
