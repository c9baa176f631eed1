"""Chains on a real Slurm cluster: what is queued again, without which nodes, and what stops. Scripts, records, Slurm
and the node check are real; only the training itself is stood in for, so that this takes seconds."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NLD, ROOT, write_site

pytestmark = pytest.mark.slow

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
SOON = 150  # seconds, on a busy machine
# `nld` on the nodes: a stand-in for `train`; everything else is the real command.
STAND_IN = """\
#!/bin/bash
if [ "$1" != train ]; then exec {nld} "$@"; fi
{train}
"""
Launch = Callable[..., list[str]]


@pytest.fixture
def launch(slurm: Cluster, prepared: Path, tmp_path: Path) -> Launch:
    """`nld launch` of a run of 100 steps into tmp_path / output, for which a shell script stands in."""

    def run(output: str, train: str, nodes: int, *words: str) -> list[str]:
        """The numbers of its jobs."""
        folder = tmp_path / f"of_{output}"
        folder.mkdir()
        command = folder / "nld"
        command.write_text(STAND_IN.format(nld=NLD, train=train))
        command.chmod(0o755)
        site = write_site(folder, NLD_COMMAND=command, NLD_STARTS_WITHOUT_PROGRESS=2)
        data = [f"data.blend={prepared}/data/a", f"data.tokenizer={prepared}/tokenizer", f"output={tmp_path / output}"]
        data.append("model.vocab_size=400")
        size = ["train.iterations=100", f"parallel.world_size={nodes}", "optimizer.warmup_iterations=0"]
        placed = ["--executor", "slurm", "--nodes", str(nodes), "--site", str(site)]
        done = subprocess.run(
            [str(NLD), "launch", "tiny_stage1_ar", *data, *size, "optimizer.decay_iterations=0", *words, *placed],
            cwd=ROOT,
            env=slurm.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


def shown(slurm: Cluster, *outputs: Path) -> list[str]:
    """Lines of `nld jobs`."""
    report = slurm.run(str(NLD), "jobs", *map(str, outputs))
    return [line.strip() for line in report.splitlines()]


def test_a_failing_run_is_queued_again_until_it_gets_nowhere(slurm: Cluster, launch: Launch, tmp_path: Path) -> None:
    """On a node each: one saves a step in its second start and fails on; one gets a node that is not well."""
    saved = tmp_path / "fails" / "checkpoints" / "iter_0000040"
    files = json.dumps({"files": {"weights": {"bytes": 0, "crc32": "00000000"}}})
    saves = f"mkdir -p {saved}; touch {saved}/weights; echo '{files}' > {saved}/manifest.json"
    (failing,) = launch("fails", f'if [ "${{SLURM_RESTART_COUNT:-0}}" -eq 1 ]; then {saves}; fi\nexit 1', nodes=1)
    # On the node that it gets first, gloo is told of an interface that this node does not have.
    is_first = f"mkdir {tmp_path}/bad 2>/dev/null && echo $SLURMD_NODENAME > {tmp_path}/bad/node"
    broken = (
        f'if [ $SLURMD_NODENAME = $(cat {tmp_path}/bad/node) ]; then GLOO_SOCKET_IFNAME=nowhere exec {NLD} "$@"; fi'
    )
    (unhealthy,) = launch("unwell", f"{is_first}\n{broken}", nodes=1)

    assert slurm.wait(unhealthy, ENDED, SOON) == "COMPLETED", slurm.logs()
    bad = (tmp_path / "bad" / "node").read_text().strip()
    assert slurm.job(unhealthy)["ExcNodeList"] == bad
    _, _, start, why, left_out = shown(slurm, tmp_path / "unwell")
    assert start.startswith(f"{unhealthy} ") and start.endswith("a node failed its check")
    assert why.startswith(f"node {bad}: all-reduce of its ranks: rank 0: ") and "nowhere" in why
    assert left_out == f"left out from then on: {bad}"

    assert slurm.wait(failing, ENDED, 2 * SOON) == "FAILED"
    assert slurm.job(failing)["Restarts"] == "3", "saved nothing, then step 40, then twice nothing"
    lines = shown(slurm, tmp_path / "fails")
    assert [line.split("  ")[0] for line in lines[2:6]] == [failing, *(f"{failing} restart {n}" for n in (1, 2, 3))]
    assert "0 -> 40" in lines[3] and lines[3].endswith("failed with status 1")
    end = f"2 starts of job {failing} in a row saved no new step: {tmp_path}/fails is still at step 40"
    assert lines[-1].startswith(f"the chain stopped: {end}")
    assert f"the chain stops: {end}" in (tmp_path / "fails" / "slurm" / f"{failing}.log").read_text()


def test_one_command_cancels_a_chain(slurm: Cluster, launch: Launch, tmp_path: Path) -> None:
    """A stage that runs on both nodes, and its export: the stage leaves with a word, and nothing is queued again."""
    waits = f"trap 'exit 75' TERM; touch {tmp_path}/waits_$SLURM_PROCID; sleep {SOON} & wait"
    stage, export = launch("stage", waits, 2, "--then-export", f"{tmp_path}/hf")
    slurm.wait(stage, ("RUNNING",), SOON)
    end = time.monotonic() + SOON
    while len([*tmp_path.glob("waits_*")]) < 2:
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.1)
    report = shown(slurm, tmp_path / "stage")
    assert report[0] == f"{tmp_path}/stage: not started" and f"job {stage}: RUNNING None" in report
    assert f"export to {tmp_path}/hf: PENDING Dependency" in report
    said = slurm.run(str(NLD), "jobs", str(tmp_path / "stage"), "--cancel")
    assert said == f"cancelled: {stage}, {export}\n"
    assert slurm.wait(stage, ENDED, SOON) == "CANCELLED" and slurm.wait(export, ENDED, SOON) == "CANCELLED"
    assert slurm.job(stage)["Restarts"] == "0"
    report = shown(slurm, tmp_path / "stage")
    assert report[2].endswith("asked to stop, saved (cancelled)"), report


@pytest.mark.long
def test_nodes_are_checked_by_hand(slurm: Cluster, prepared: Path, tmp_path: Path) -> None:
    """`nld doctor --meet` in an allocation, as its help says."""
    data = f"data.blend={prepared}/data/a data.tokenizer={prepared}/tokenizer output={tmp_path}/out"
    doctor = f"{NLD} doctor tiny_stage1_ar {data} parallel.world_size=2 --meet $(hostname):23001"
    wrapped = f"srun --ntasks-per-node=1 --cpu-bind=none {doctor}"
    done = slurm.run("sbatch", "--wait", "--nodes=2", "--exclusive", f"--output={tmp_path}/log", f"--wrap={wrapped}")
    assert "Submitted" in done
    said = (tmp_path / "log").read_text().splitlines()
    *nodes, summary = [line for line in said if not line.startswith("srun: ")]
    assert nodes == ["node 0  ok", "node 1  ok"]
    assert summary.startswith("2 healthy node(s): no GPUs, all-reduce of 2 ranks is right, clocks within 0.")


@pytest.mark.long
def test_a_run_over_its_limit_and_a_lost_first_node_go_on(slurm: Cluster, launch: Launch, tmp_path: Path) -> None:
    """Two runs at a time: one does not leave when it is asked to, until Slurm ends it; one loses the node that its
    script runs on."""
    once = '[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || '
    (limited,) = launch("limited", f"trap '' USR1; {once}exec sleep 600", nodes=1)
    (lost,) = launch("lost", f"{once}exec sleep 600", nodes=1)
    for number in (limited, lost):
        slurm.wait(number, ("RUNNING",), SOON)
    slurm.run("scontrol", "update", f"JobId={limited}", "TimeLimit=1")
    node = slurm.job(lost)["NodeList"]
    slurm.fail_node(node)
    down = ["sinfo", "-h", "-n", node, "-o", "%t"]
    deadline = time.monotonic() + SOON
    while "down" not in slurm.run(*down):
        assert time.monotonic() < deadline, f"{node} is not down\n{slurm.logs()}"
        time.sleep(0.5)
    slurm.start_node(node)
    for number in (limited, lost):
        assert slurm.wait(number, ENDED, 2 * SOON) == "COMPLETED", slurm.logs()
        assert slurm.job(number)["Restarts"] == "1"
    start = shown(slurm, tmp_path / "limited")[2]
    assert start.startswith(f"{limited} ") and start.endswith("(over its time limit)"), start
