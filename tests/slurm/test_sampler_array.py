"""`nld launch sampler` on a real Slurm cluster of two nodes: trajectories by an array of shards, one of them killed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.test_data_array import task_states
from tests.slurm.test_eval_array import written_prompts
from tests.slurm.test_launch import ENDED, STARTED, wait_until


def contents(folder: Path) -> dict[str, bytes]:
    """What a collection holds, but for what a killed process left half written."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if ".partial-" not in path.name}


@pytest.mark.long
def test_trajectories_of_shards_have_the_bytes_of_one_process(
    slurm: Cluster, shared: Path, folder: Path, nld: Callable, tmp_path: Path
) -> None:
    """Although a shard's process is killed: its job is queued again, and goes on."""
    asked = [folder, "--prompts", written_prompts(tmp_path), "--block", "4,8", "--part", 1, "--max-new-tokens", 64]
    output, here = tmp_path / "in shards", tmp_path / "here"
    done = nld("launch", "sampler", *asked, "--output", output, "--shards", 2, "--site", shared / "site.env")
    assert done.returncode == 0, done.stderr
    array, merge = done.stdout.split()
    wait_until(lambda: (output / "part-00000.json").exists(), "the first part")
    for process in slurm.python_processes("1/2"):
        os.kill(process, 9)
    assert slurm.wait(merge, ENDED, seconds=2 * STARTED) == "COMPLETED", slurm.logs()
    log = (tmp_path / "in shards.slurm" / f"{array}_1.log").read_text()
    assert "shard 1/2 ended with status" in log
    assert task_states(slurm, array)[2]["Restarts"] == "0"
    assert nld("sampler", "collect", *asked, "--output", here).returncode == 0
    assert contents(output) == contents(here)


@pytest.mark.slow
def test_a_collection_that_no_shard_could_make_is_not_submitted(
    slurm: Cluster, shared: Path, folder: Path, nld: Callable, tmp_path: Path
) -> None:
    given = ["launch", "sampler", folder, "--site", shared / "site.env", "--output", tmp_path / "refused"]
    done = nld(*given, "--prompts", written_prompts(tmp_path), "--part", 4, "--shards", 3)
    assert done.returncode == 2 and "--shards 3 of 2 parts" in done.stderr, done.stderr
    assert slurm.run("squeue", "-h") == "" and not (tmp_path / "refused.slurm").exists()
