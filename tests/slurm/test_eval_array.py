"""`nld launch eval` on a real Slurm cluster of two nodes: an array of shards and their merge, with a shard killed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evaluation.test_shards import without_times
from tests.slurm.cluster import Cluster
from tests.slurm.test_data_array import task_states
from tests.slurm.test_launch import ENDED, STARTED, wait_until

TEXTS = ("def f(x):", "import os", "class A:", "for i in", "return", "if x:", "while", "print(")


def written_prompts(folder: Path) -> Path:
    path = folder / "my prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "category": text[0]}) + "\n" for text in TEXTS))
    return path


def figures(folder: Path) -> object:
    return without_times(json.loads((folder / "decode.json").read_text()))


@pytest.mark.slow
def test_prompts_are_answered_in_shards_and_merged(
    slurm: Cluster, shared: Path, folder: Path, nld: Callable, tmp_path: Path
) -> None:
    """The figures of one process, although a shard's process is killed: its job is queued again, and goes on."""
    asked = [folder, "--prompts", written_prompts(tmp_path), "--mode", "all", "--block", "4,8"]
    asked += ["--max-new-tokens", 48]  # long enough to be killed
    output, here = tmp_path / "in shards", tmp_path / "here"
    done = nld("launch", "eval", "decode", *asked, "--output", output, "--shards", 2, "--site", shared / "site.env")
    assert done.returncode == 0, done.stderr
    array, merge = done.stdout.split()
    first = output / "decode.1-of-2.jsonl"
    wait_until(lambda: first.exists() and first.read_text().count("\n") > 2, "records of the first shard")
    for process in slurm.python_processes("1/2"):
        os.kill(process, 9)
    assert slurm.wait(merge, ENDED, seconds=2 * STARTED) == "COMPLETED", slurm.logs()
    log = (tmp_path / "in shards.slurm" / f"{array}_1.log").read_text()
    assert "shard 1/2 ended with status" in log and "are there already, and are kept" in log
    assert task_states(slurm, array)[2]["Restarts"] == "0"
    assert nld("eval", "decode", *asked, "--output", here).returncode == 0
    assert figures(output) == figures(here)


@pytest.mark.slow
def test_what_no_shard_could_answer_is_not_submitted(
    slurm: Cluster, shared: Path, folder: Path, nld: Callable, tmp_path: Path
) -> None:
    given = ["launch", "eval", "decode", folder, "--site", shared / "site.env", "--output", tmp_path / "refused"]
    done = nld(*given, "--prompts", tmp_path / "nothing.jsonl", "--shards", 2)
    assert done.returncode == 2 and "no file" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = nld(*given, "--prompts", written_prompts(tmp_path), "--shards", 99)
    assert done.returncode == 2 and "--shards 99 of 8 prompts" in done.stderr
    assert slurm.run("squeue", "-h") == "" and not (tmp_path / "refused.slurm").exists()
