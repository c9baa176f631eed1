"""`nld train` as one rank of a torchrun that is not our own. That such ranks train to the same bits: tests/launch and
tests/slurm (test_nemo.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.errors import UserError
from nld_train.node_check.nodes import Nodes
from nld_train.start.foreign_torchrun import check_torchrun_size, torchrun_nodes

ROOT = Path(__file__).parents[2]


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    """Two ranks of it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, "-m", "nld_train.cli", "train", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_nodes_are_torchruns() -> None:
    variables = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
    assert torchrun_nodes(variables) == Nodes(count=2, node_rank=1)
    assert torchrun_nodes({**variables, "NLD_NODES": "n1 n2"}).labels == ("n1", "n2")


def test_another_number_of_ranks_is_refused() -> None:
    run = recipe.load_recipe("tiny_stage1_ar")
    check_torchrun_size(run, 2)
    with pytest.raises(UserError, match=r"on 4 ranks of torchrun.*start 2 ranks in all, or set parallel.world_size=4"):
        check_torchrun_size(run, 4)


@pytest.mark.slow
def test_a_refused_run_is_refused_once_and_ends_every_rank(tmp_path: Path) -> None:
    done = torchrun("tiny_stage1_ar", f"data.blend={tmp_path}/none", f"output={tmp_path}/run")
    assert done.returncode == 1
    assert done.stderr.count("nld: ") == 1 and f"nld: no file {tmp_path}/none.idx" in done.stderr, done.stderr
    assert done.stdout.count("[optimizer]") == 1, "the settings are printed once"
    assert "SIGKILL" not in done.stderr, "torchrun did not have to end a rank"
    assert not (tmp_path / "run").exists()
