"""`nld launch data` on a real Slurm cluster of two nodes: an array of shards and their merge, with a node lost."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NLD
from tests.slurm.test_launch import ENDED, STARTED, wait_until

SHARDS = 4
SUFFIXES = (".bin", ".idx", ".manifest.json")
LaunchData = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def launch_data(nld: LaunchData, shared: Path) -> LaunchData:
    """`nld launch data` on the cluster, from a site file of this machine."""
    return lambda *words: nld("launch", "data", *words, "--site", shared / "site.env")


def corpus(folder: Path, lines: int) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / f"{lines}.jsonl").open("w") as stream:
        for number in range(lines):
            text = f"document {number}: " + f"def function_{number}(value): return value * {number}\n" * 40
            stream.write(json.dumps({"text": text}) + "\n")
    return folder / f"{lines}.jsonl"


def prepare_here(source: Path, prefix: Path, tokenizer: Path) -> None:
    command = [str(NLD), "data", "prepare", source, "--tokenizer", tokenizer, "--output", prefix, "--workers", "1"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def task_states(slurm: Cluster, array: str) -> dict[int, dict[str, str]]:
    """What the controller says of every shard that it has begun with."""
    found = {}
    for line in slurm.run("scontrol", "--oneliner", "show", "job", array).splitlines():
        entry = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if entry["ArrayTaskId"].isdigit():
            found[int(entry["ArrayTaskId"])] = entry
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "--shards", "2"], "no file or folder nowhere"),
        (["recipes", "--shards", "0"], "--shards 0"),
        (["recipes", "--shards", "2", "--shard", "1/2"], "leave --shard out"),
        (["recipes", "--shards", "2", "--partition", "nowhere"], "Slurm refuses the job: invalid partition"),
    ],
)
def test_what_cannot_be_prepared_is_not_submitted(
    slurm: Cluster, shared: Path, launch_data: LaunchData, words: list[str], said: str
) -> None:
    done = launch_data(*words, "--tokenizer", shared / "tokenizer", "--output", shared / "refused")
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert slurm.run("squeue", "-h") == "" and not (shared / "refused.slurm").exists()


@pytest.mark.slow
def test_shards_are_prepared_and_merged(slurm: Cluster, shared: Path, launch_data: LaunchData) -> None:
    source, prefix = corpus(shared / "corpus", 400), shared / "token file"
    done = launch_data(source, "--tokenizer", shared / "tokenizer", "--output", prefix, "--shards", 2, "--workers", 1)
    assert done.returncode == 0, done.stderr
    _, merge = done.stdout.split()
    assert slurm.wait(merge, ENDED, seconds=STARTED) == "COMPLETED", slurm.logs()
    prepare_here(source, shared / "here", shared / "tokenizer")
    for suffix in SUFFIXES:
        assert Path(f"{prefix}{suffix}").read_bytes() == Path(f"{shared / 'here'}{suffix}").read_bytes()


@pytest.mark.long
def test_a_lost_node_and_a_failed_shard_change_nothing(slurm: Cluster, shared: Path, launch_data: LaunchData) -> None:
    """A node loses power while it encodes, and the process of a later shard is killed once: both are queued again."""
    source, prefix = corpus(shared / "corpus", 16_000), shared / "lost"
    done = launch_data(
        *(source, "--tokenizer", shared / "tokenizer", "--output", prefix, "--shards", SHARDS),
        *("--workers", 1, "--engine", "plain"),
    )
    assert done.returncode == 0, done.stderr
    array, merge = done.stdout.split()

    def parts() -> int:
        return len(list(shared.glob(".lost.parts-*/part-*.reports.json")))

    wait_until(lambda: parts() >= 2, "two parts")
    (lost,) = [task for task, entry in task_states(slurm, array).items() if entry.get("NodeList") == "n2"]
    slurm.fail_node("n2")
    wait_until(lambda: task_states(slurm, array)[lost]["JobState"] != "RUNNING", "the lost shard queued again")
    slurm.start_node("n2")

    def encoding() -> list[int]:
        """Processes of a shard that is not the lost one: killed, they end with another status than 0 or 2."""
        return slurm.python_processes(f"{killed}/{SHARDS}")

    def running() -> bool:
        found = task_states(slurm, array)
        return killed in found and found[killed]["JobState"] == "RUNNING" and bool(encoding())

    killed = next(task for task in range(1, SHARDS + 1) if task_states(slurm, array)[task]["JobState"] == "PENDING")
    wait_until(running, f"shard {killed} running")
    for process in encoding():
        os.kill(process, 9)
    assert slurm.wait(merge, ENDED, seconds=2 * STARTED) == "COMPLETED", slurm.logs()

    log = {task: (shared / "lost.slurm" / f"{array}_{task}.log").read_text() for task in range(1, SHARDS + 1)}
    assert f"shard {killed}/{SHARDS} ended with status" in log[killed]
    assert log[killed].count(f"shard {killed}/{SHARDS} is done: ") == 1
    assert "parts are finished already" in log[lost] and f"shard {lost}/{SHARDS} is done: " in log[lost]
    prepare_here(source, shared / "lost_here", shared / "tokenizer")
    for suffix in SUFFIXES:
        assert Path(f"{prefix}{suffix}").read_bytes() == Path(f"{shared / 'lost_here'}{suffix}").read_bytes()
