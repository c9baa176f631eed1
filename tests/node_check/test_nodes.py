"""Which node this is, from the command line or from Slurm; and which ranks torchrun puts on it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.errors import UserError
from nld_train.node_check.nodes import ALONE, Nodes, parse_nodes

SRUN = {"SLURM_NNODES": "4", "SLURM_NODEID": "3"}


def test_one_machine_needs_nothing_said() -> None:
    assert parse_nodes(None, None, None, {}) == ALONE
    assert parse_nodes(None, None, None, SRUN) == ALONE, "`nld train` inside an allocation, without --meet"
    assert ALONE.first and "--standalone" in ALONE.torchrun_options


def test_slurm_or_the_user_numbers_the_nodes() -> None:
    assert parse_nodes("n1:29500", None, None, SRUN) == Nodes(4, 3, "n1:29500")
    assert parse_nodes("n1:29500", 2, 0, SRUN) == Nodes(2, 0, "n1:29500")


def test_slurms_script_names_the_nodes() -> None:
    named = parse_nodes("n1:29500", 2, 0, {"NLD_NODES": "n1 n7"})
    assert named.labels == ("n1", "n7") and Nodes(2, 0, "n1:29500").labels == ("node 0", "node 1")
    with pytest.raises(UserError, match="names 2 nodes"):
        parse_nodes("n1:29500", 3, 0, {"NLD_NODES": "n1 n7"})


def test_only_the_first_node_hosts_the_meeting() -> None:
    first, second = (" ".join(Nodes(2, here, "n1:29500").torchrun_options) for here in (0, 1))
    assert "is_host=1" in first and "is_host=0" in second
    assert "--rdzv-endpoint=n1:29500" in first and "--nnodes=2" in second


def test_ranks_are_shared_out_evenly() -> None:
    run = recipe.load_recipe("nld_8b_stage1_ar")
    assert ALONE.ranks(run) == 256 and Nodes(32, 0, "n1:1").ranks(run) == 8
    with pytest.raises(UserError, match="256 on 3 nodes"):
        Nodes(3, 0, "n1:1").ranks(run)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((None, 2, None), "with --meet"),
        (("n1", 2, 0), "HOST:PORT"),
        (("n1:port", 2, 0), "HOST:PORT"),
        ((":29500", 2, 0), "HOST:PORT"),
        (("n1:29500", None, None), "SLURM_NODEID"),
        (("n1:29500", 2, 2), "0 to 1"),
    ],
)
def test_half_an_answer_is_refused(words: tuple, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_nodes(*words, {})


@pytest.mark.slow
def test_neighbouring_ranks_are_on_one_node(tmp_path: Path) -> None:
    """Megatron's tensor-parallel groups are neighbouring ranks; with real torchruns, one for each node."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import pathlib\n"
        "from os import environ as told\n"
        "pathlib.Path(told['TOLD'], told['RANK']).write_text(told['NODE'] + told['LOCAL_RANK'])\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        meet = f"127.0.0.1:{server.getsockname()[1]}"
    (tmp_path / "told").mkdir()
    started = []
    for here in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", *Nodes(2, here, meet).torchrun_options]
        variables = {**os.environ, "NODE": "ab"[here], "TOLD": str(tmp_path / "told")}
        started.append(subprocess.Popen([*command, "--nproc-per-node=4", str(script)], env=variables))
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    told = [(tmp_path / "told" / str(rank)).read_text() for rank in range(8)]
    assert told in (["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"], ["b0", "b1", "b2", "b3", "a0", "a1", "a2", "a3"])
    for tensor in (2, 4):
        groups = [told[first : first + tensor] for first in range(0, 8, tensor)]
        assert all(len({place[0] for place in group}) == 1 for group in groups)
