"""`nld launch` on a real Slurm cluster of two nodes: refusals, and training that equals an undisturbed local run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import PARTITION, URGENT, Cluster

ROOT = Path(__file__).parents[2]
NLD = Path(sys.executable).with_name("nld")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
STARTED = 300  # seconds that a start and a few steps may take on a busy machine
SETTINGS = [
    "train.eval_batches=0",
    "optimizer.warmup_iterations=0",
    "optimizer.decay_iterations=0",
    "checkpoint.interval=40",
    "data.sequence_length=64",
    "data.workers=0",
    "log.interval=1",
]


@pytest.fixture(scope="module")
def shared(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all nodes see: data, a site file, outputs."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    site = {
        "NLD_ACCOUNT": "none",
        "NLD_PARTITION": PARTITION,
        "NLD_TIME": "1:00:00",
        "NLD_GPUS_PER_NODE": "0",
        "NLD_FOLDER": ROOT,
        "NLD_COMMAND": NLD,
        "OMP_NUM_THREADS": "1",
    }
    (folder / "site.env").write_text("".join(f"{name}={value}\n" for name, value in site.items()))
    return folder


@pytest.fixture
def launch(slurm: Cluster, shared: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`nld launch --executor slurm` on the cluster."""

    def run(recipe: str, *words: object, nodes: int = 2) -> subprocess.CompletedProcess[str]:
        placed = ["--executor", "slurm", "--nodes", str(nodes), "--site", str(shared / "site.env")]
        command = [str(NLD), "launch", recipe, *map(str, words), *placed]
        return subprocess.run(command, cwd=ROOT, env=slurm.environment, capture_output=True, text=True, check=False)

    return run


def settings(shared: Path, output: str, *more: str, steps: int = 150) -> list[str]:
    data = [f"data.blend={shared}/data/a", f"data.tokenizer={shared}/tokenizer", f"train.iterations={steps}"]
    return [*SETTINGS, *data, f"output={shared}/{output}", *more]


def curve(folder: Path) -> list[tuple[float, ...]]:
    """(step, losses, gradient norm) of every step."""
    kept = ("step", "AR loss", "diffusion loss", "total loss", "gradient norm")
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [tuple(entry[name] for name in kept if name in entry) for entry in entries if entry["kind"] == "train"]


def train_here(recipe: str, words: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(NLD), "train", recipe, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def wait_until(reached: Callable[[], bool], what: str, seconds: float = STARTED) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"{what} not reached in {seconds} s"
        time.sleep(0.2)


def wait_for_steps(folder: Path, count: int) -> None:
    """Until so many steps were taken since the last start."""

    def steps() -> int:
        return len(curve(folder)) if (folder / "metrics.jsonl").exists() else 0

    before = steps()
    wait_until(lambda: steps() >= before + count, f"{count} more steps")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("site", "nodes", "words", "said"),
    [
        ({"NLD_PARTITION": "nowhere"}, 2, (), "Slurm refuses the job: invalid partition"),
        ({}, 4, ("parallel.world_size=4", "train.micro_batch=2"), "Slurm refuses the job: .*node"),
        ({}, 3, (), "give --nodes 2"),
        ({}, 2, ("init=nowhere",), "init='nowhere'"),
        ({"NLD_ACCOUNT": ""}, 2, (), "without NLD_ACCOUNT"),
    ],
)
def test_what_cannot_run_is_not_submitted(
    slurm: Cluster,
    shared: Path,
    launch: Callable[..., subprocess.CompletedProcess[str]],
    site: dict[str, str],
    nodes: int,
    words: tuple[str, ...],
    said: str,
) -> None:
    path = shared / "site.env"
    good = path.read_text()
    lines = dict(line.split("=", 1) for line in good.splitlines()) | site
    path.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    try:
        done = launch("tiny_stage1_ar", *settings(shared, "refused", *words), nodes=nodes)
    finally:
        path.write_text(good)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(said, done.stderr), done.stderr
    assert slurm.run("squeue", "-h") == "" and not (shared / "refused").exists()


def submit_by_hand(slurm: Cluster, shared: Path, recipe: str, words: list[str]) -> str:
    """As slurm/train.sbatch says; returns the job's number."""
    script = ["sbatch", "--parsable", "--nodes=2", f"--output={shared}/by_hand.log", str(ROOT / "slurm/train.sbatch")]
    source = f'set -a; . {shared}/site.env; set +a; exec "$@"'
    return slurm.run("bash", "-c", source, "bash", *script, recipe, *words).strip()


@pytest.mark.long
@pytest.mark.megatron
def test_two_nodes_and_a_requeue_train_what_one_machine_trains(
    slurm: Cluster, shared: Path, launch: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Stage 1, with stage 2 queued after it, stopped in the middle as a time limit does it, and going on by itself;
    stage 1 once more by hand; and both on this machine alone."""
    one = launch("tiny_stage1_ar", *settings(shared, "stage1"))
    assert one.returncode == 0, one.stderr
    two = launch("tiny_stage2_joint", *settings(shared, "stage2"), "--after", f"{shared}/stage1")
    assert two.returncode == 0, two.stderr
    first, second = one.stdout.strip(), two.stdout.strip()
    wait_for_steps(shared / "stage1", 20)
    slurm.run("scancel", "--signal=USR1", first)  # what --signal=USR1@... sends, to the same processes
    assert slurm.wait(first, ENDED, seconds=2 * STARTED) == "COMPLETED", slurm.logs()
    assert slurm.job(first)["Restarts"] == "1"
    _, _, stopped, finished = slurm.run(str(NLD), "jobs", f"{shared}/stage1").splitlines()[:4]
    assert stopped.startswith(f"{first} ") and stopped.endswith("asked to stop, saved")
    assert finished.startswith(f"{first} restart 1 ") and finished.endswith("finished")
    assert slurm.wait(second, ENDED, seconds=STARTED) == "COMPLETED", slurm.logs()
    third = submit_by_hand(slurm, shared, "tiny_stage1_ar", settings(shared, "by_hand"))
    assert slurm.wait(third, ENDED, seconds=STARTED) == "COMPLETED", (shared / "by_hand.log").read_text()[-2000:]

    train_here("tiny_stage1_ar", settings(shared, "here1"))
    train_here("tiny_stage2_joint", settings(shared, "here2", f"init={shared}/here1"))
    assert len(curve(shared / "stage1")) == len(curve(shared / "stage2")) == 150
    assert curve(shared / "stage1") == curve(shared / "by_hand") == curve(shared / "here1")
    assert curve(shared / "stage2") == curve(shared / "here2")


@pytest.mark.long
@pytest.mark.megatron
def test_a_time_limit_a_preemption_and_a_lost_node_change_nothing(
    slurm: Cluster, shared: Path, launch: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """One job, hit by all three; it goes on by itself each time."""
    words = {output: settings(shared, output, steps=1000) for output in ("hurt", "unhurt")}
    done = launch("tiny_stage1_ar", *words["hurt"])
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip()

    def restarted(times: int) -> None:
        wait_until(lambda: slurm.job(number)["Restarts"] == str(times), f"restart {times}")
        assert slurm.wait(number, ("RUNNING", *ENDED), seconds=60) == "RUNNING"

    wait_for_steps(shared / "hurt", 10)
    run_time = slurm.job(number)["RunTime"].split(":")
    minutes = 60 * int(run_time[0]) + int(run_time[1])
    slurm.run("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes + 3}")  # the signal comes 300 s before
    restarted(1)
    slurm.run("scontrol", "update", f"JobId={number}", "TimeLimit=60")

    wait_for_steps(shared / "hurt", 10)
    takes = ["--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    urgent = slurm.run("sbatch", "--parsable", f"--partition={URGENT}", *takes).strip()
    assert slurm.wait(urgent, ENDED, seconds=STARTED) == "COMPLETED"
    restarted(2)

    wait_for_steps(shared / "hurt", 10)
    slurm.fail_node("n2")
    wait_until(lambda: "down" in slurm.run("sinfo", "-h", "-n", "n2", "-o", "%t"), "a node that is down")
    slurm.start_node("n2")
    restarted(3)
    assert slurm.wait(number, ENDED, seconds=2 * STARTED) == "COMPLETED", slurm.logs()
    report = slurm.run(str(NLD), "jobs", f"{shared}/hurt")
    assert report.count("asked to stop, saved") == 2 and report.count("finished") == 1, report

    train_here("tiny_stage1_ar", words["unhurt"])
    assert len(curve(shared / "hurt")) == 1000
    assert curve(shared / "hurt") == curve(shared / "unhurt")
