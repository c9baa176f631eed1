"""`nld launch` on a real Slurm cluster of two nodes: refusals, and training that equals an undisturbed local run."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import URGENT, Cluster, end
from tests.slurm.conftest import NLD, ROOT, write_site

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
STARTED = 400  # seconds that a start and a few steps may take on a busy machine
STEPS = 120
SETTINGS = [
    "model.vocab_size=400",
    "train.eval_batches=0",
    "optimizer.warmup_iterations=0",
    "optimizer.decay_iterations=0",
    "data.sequence_length=64",
    "data.workers=0",
    "log.interval=1",
]
Launch = Callable[..., subprocess.CompletedProcess[str]]


def settings(shared: Path, output: str, *more: str, steps: int = STEPS) -> list[str]:
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


@pytest.fixture(scope="module")
def undisturbed(shared: Path) -> Path:
    """Stage 1 on this machine alone."""
    train_here("tiny_stage1_ar", settings(shared, "here1", "checkpoint.interval=1000"))
    return shared / "here1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("site", "nodes", "words", "said"),
    [
        ({"NLD_PARTITION": "nowhere"}, 2, (), "Slurm refuses the job: invalid partition"),
        ({}, 4, ("parallel.world_size=4", "train.micro_batch=2"), "Slurm refuses the job: .*node"),
        ({}, 3, (), "give --nodes 2"),
        ({}, 2, ("init=nowhere",), "init='nowhere'"),
        ({}, 2, ("--then-export", "tests"), "tests exists already"),
        ({"NLD_ACCOUNT": ""}, 2, (), "without NLD_ACCOUNT"),
    ],
)
def test_what_cannot_run_is_not_submitted(
    slurm: Cluster,
    shared: Path,
    launch: Launch,
    site: dict[str, str],
    nodes: int,
    words: tuple[str, ...],
    said: str,
) -> None:
    write_site(shared, NLD_COMMAND=NLD, **site)
    done = launch("tiny_stage1_ar", *settings(shared, "refused", *words), nodes=nodes)
    write_site(shared, NLD_COMMAND=NLD)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(said, done.stderr), done.stderr
    assert slurm.run("squeue", "-h") == "" and not (shared / "refused").exists()


@pytest.mark.slow
def test_two_nodes_train(slurm: Cluster, shared: Path, launch: Launch) -> None:
    """The short cut of what follows: the check of the nodes, and three real steps on a rank each."""
    done = launch("tiny_stage1_ar", *settings(shared, "short", steps=3))
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip()
    assert slurm.wait(number, ENDED, seconds=STARTED) == "COMPLETED", slurm.logs()
    said = (shared / "short" / "slurm" / f"{number}.log").read_text()
    assert "2 healthy node(s): no GPUs, all-reduce of 2 ranks is right" in said
    assert len(curve(shared / "short")) == 3
    start = slurm.run(str(NLD), "jobs", f"{shared}/short").splitlines()[2]
    assert start.startswith(f"{number} ") and "n1,n2" in start and start.endswith("finished")


def submit_by_hand(slurm: Cluster, shared: Path, recipe: str, words: list[str]) -> str:
    """As slurm/train.sbatch says; returns the job's number."""
    script = ["sbatch", "--parsable", "--nodes=2", f"--output={shared}/by_hand.log", str(ROOT / "slurm/train.sbatch")]
    source = f'set -a; . "{shared}/site.env"; set +a; exec "$@"'
    return slurm.run("bash", "-c", source, "bash", *script, recipe, *words).strip()


@pytest.mark.long
def test_a_chain_on_two_nodes_trains_and_exports_what_one_machine_does(
    slurm: Cluster, shared: Path, launch: Launch, undisturbed: Path
) -> None:
    """Stage 1 by hand, stopped in the middle and going on by itself; stage 2 and its export are queued meanwhile."""
    first = submit_by_hand(slurm, shared, "tiny_stage1_ar", settings(shared, "stage1"))
    wait_for_steps(shared / "stage1", 5)
    slurm.run("scancel", "--signal=USR1", first)  # what --signal=USR1@... sends, to the same processes
    words = settings(shared, "stage2")
    two = launch("tiny_stage2_joint", *words, "--after", f"{shared}/stage1", "--then-export", f"{shared}/hf")
    assert two.returncode == 0, two.stderr
    second, export = two.stdout.split()
    assert slurm.wait(first, ENDED, seconds=2 * STARTED) == "COMPLETED", (shared / "by_hand.log").read_text()[-2000:]
    assert slurm.job(first)["Restarts"] == "1"
    train_here("tiny_stage2_joint", settings(shared, "here2", f"init={undisturbed}"))
    assert slurm.wait(export, ENDED, seconds=2 * STARTED) == "COMPLETED", slurm.logs()

    report = slurm.run(str(NLD), "jobs", f"{shared}/stage2", f"{shared}/stage1")
    print(report)
    one, two = report.split("\n\n")
    _, _, stopped, finished = one.splitlines()
    assert stopped.startswith(f"{first} ") and stopped.endswith("asked to stop, saved")
    assert finished.startswith(f"{first} restart 1 ") and finished.endswith("finished")
    assert two.splitlines()[2].startswith(f"{second} ") and two.splitlines()[2].endswith("finished")
    assert two.splitlines()[3] == f"export to {shared}/hf: done"
    assert (shared / "hf" / "model.safetensors").is_file()
    assert len(curve(shared / "stage1")) == len(curve(shared / "stage2")) == STEPS
    assert curve(shared / "stage1") == curve(undisturbed)
    assert curve(shared / "stage2") == curve(shared / "here2")


@pytest.mark.long
def test_a_time_limit_a_preemption_and_a_lost_node_change_nothing(
    slurm: Cluster, shared: Path, launch: Launch, undisturbed: Path
) -> None:
    """One job, hit by all three; it goes on by itself each time. Saving every step makes it slow enough to hit."""
    write_site(shared, NLD_COMMAND=NLD, NLD_SAVE_SECONDS=110)
    done = launch("tiny_stage1_ar", *settings(shared, "hurt", "checkpoint.interval=1"))
    write_site(shared, NLD_COMMAND=NLD)
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip()

    def restarted(times: int) -> None:
        wait_until(lambda: slurm.job(number)["Restarts"] == str(times), f"restart {times}")
        assert slurm.wait(number, ("RUNNING", *ENDED), seconds=STARTED) == "RUNNING"

    wait_for_steps(shared / "hurt", 3)
    # One to two minutes are left: it is asked within 10 seconds, and the half a minute in which Slurm looks once.
    hours, minutes, _ = map(int, slurm.job(number)["RunTime"].split(":"))
    slurm.run("scontrol", "update", f"JobId={number}", f"TimeLimit={60 * hours + minutes + 2}")
    restarted(1)
    slurm.run("scontrol", "update", f"JobId={number}", "TimeLimit=60")

    wait_for_steps(shared / "hurt", 3)
    takes = ["--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    urgent = slurm.run("sbatch", "--parsable", f"--partition={URGENT}", *takes).strip()
    assert slurm.wait(urgent, ENDED, seconds=STARTED) == "COMPLETED"
    restarted(2)

    wait_for_steps(shared / "hurt", 3)
    slurm.fail_node("n2")
    # It stays away until the job's script has seen it: a node that is back by then is a well one.
    missed = "node n2: it does not answer, or nld does not start there"
    wait_until(lambda: missed in slurm.run(str(NLD), "jobs", f"{shared}/hurt"), "n2 in the record")
    slurm.start_node("n2")
    restarted(3)
    assert slurm.wait(number, ENDED, seconds=2 * STARTED) == "COMPLETED", slurm.logs()
    report = slurm.run(str(NLD), "jobs", f"{shared}/hurt")
    print(report)
    lines = [line.strip() for line in report.splitlines()]
    assert lines[2].endswith("asked to stop, saved") and lines[3].endswith("asked to stop, saved (preempted)")
    assert missed in lines
    assert "kept, or the job would not have the nodes to run: n2" in lines
    assert lines[-1].startswith(f"{number} restart 3") and lines[-1].endswith("finished")

    assert len(curve(shared / "hurt")) == STEPS
    assert curve(shared / "hurt") == curve(undisturbed)


@pytest.mark.long
def test_a_node_that_is_lost_before_the_first_checkpoint_changes_nothing(
    slurm: Cluster, shared: Path, launch: Launch, undisturbed: Path
) -> None:
    """A job of one node, killed with its node in its first steps: it starts again on the other node, from step 0."""
    words = settings(shared, "early", "checkpoint.interval=1000")
    done = launch("tiny_stage1_ar", *words, nodes=1)
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip()
    wait_for_steps(shared / "early", 2)
    node = slurm.job(number)["NodeList"]
    slurm.fail_node(node)
    wait_until(lambda: slurm.job(number)["Restarts"] == "1", "restart 1")
    assert slurm.wait(number, ENDED, seconds=2 * STARTED) == "COMPLETED", slurm.logs()
    assert slurm.job(number)["NodeList"] != node
    slurm.start_node(node)
    assert len(curve(shared / "early")) == STEPS
    assert curve(shared / "early") == curve(undisturbed)


@pytest.mark.long
def test_a_controller_that_is_away_when_a_rank_dies_changes_nothing(
    slurm: Cluster, shared: Path, launch: Launch, undisturbed: Path
) -> None:
    """The job's script asks Slurm until the controller is back; the job then starts again by itself, from step 0."""
    done = launch("tiny_stage1_ar", *settings(shared, "unheard", "checkpoint.interval=1000"))
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip()
    wait_for_steps(shared / "unheard", 3)
    slurm.kill("slurmctld")
    for process in slurm.python_processes(f"output={shared}/unheard"):
        end(process)
    log = shared / "unheard" / "slurm" / f"{number}.log"
    wait_until(lambda: "is tried again in 10 seconds" in log.read_text(), "Slurm asked again")
    slurm.start_controller()
    wait_until(lambda: slurm.job(number)["Restarts"] == "1", "restart 1")
    assert slurm.wait(number, ENDED, seconds=2 * STARTED) == "COMPLETED", slurm.logs()
    print(log.read_text())
    assert len(curve(shared / "unheard")) == STEPS
    assert curve(shared / "unheard") == curve(undisturbed)
