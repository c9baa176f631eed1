"""nemo-run's Slurm executor on a real cluster of two nodes: `nld launch`, and the lines of the README."""

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

from tests.slurm.cluster import PARTITION, Cluster

pytestmark = [pytest.mark.long, pytest.mark.megatron]

ROOT = Path(__file__).parents[2]
NLD = Path(sys.executable).with_name("nld")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
STARTED = 400  # seconds that a start and a few steps may take on a busy machine


@pytest.fixture(scope="module")
def folder(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all nodes see, and where runs have their data and outputs: it holds no code."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    site = {
        "NLD_ACCOUNT": "none",
        "NLD_PARTITION": PARTITION,
        "NLD_TIME": "1:00:00",
        "NLD_GPUS_PER_NODE": "0",
        "NLD_FOLDER": folder,
        "NLD_COMMAND": NLD,
        "OMP_NUM_THREADS": "1",
    }
    (folder / "slurm").mkdir()
    (folder / "slurm" / "site.env").write_text("".join(f"{name}={value}\n" for name, value in site.items()))
    return folder


@pytest.fixture
def run(slurm: Cluster, folder: Path) -> Callable[..., str]:
    """stdout of a command in that folder, on the cluster."""

    def call(*command: object) -> str:
        environment = {**slurm.environment, "NEMORUN_HOME": str(folder / "nemo"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return call


def settings(output: str, steps: int) -> list[str]:
    return [
        f"train.iterations={steps}",
        "train.eval_batches=0",
        "optimizer.warmup_iterations=0",
        "optimizer.decay_iterations=0",
        "data.blend=data/a",
        "data.tokenizer=tokenizer",
        "data.sequence_length=64",
        "data.workers=0",
        "log.interval=1",
        f"output={output}",
    ]


def curve(folder: Path) -> list[tuple[float, ...]]:
    """(step, losses, gradient norm) of every step."""
    if not (folder / "metrics.jsonl").exists():
        return []
    kept = ("step", "AR loss", "diffusion loss", "total loss", "gradient norm")
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [tuple(entry[name] for name in kept if name in entry) for entry in entries if entry["kind"] == "train"]


def ended(slurm: Cluster, number: str, folder: Path) -> None:
    """Wait until a job has ended well."""
    state = slurm.wait(number, ENDED, seconds=2 * STARTED)
    logs = [path.read_text(errors="replace")[-3000:] for path in folder.glob("nemo/experiments/*/*/*/*.out")]
    assert state == "COMPLETED", "\n---\n".join([slurm.logs(), *logs])


def test_what_slurm_would_not_take_is_not_submitted(slurm: Cluster, folder: Path) -> None:
    site = (folder / "slurm" / "site.env").read_text().replace(f"NLD_PARTITION={PARTITION}", "NLD_PARTITION=nowhere")
    (folder / "elsewhere.env").write_text(site)
    words = ["tiny_stage1_ar", *settings("out/refused", 5), "--executor", "nemo-run", "--nodes", "2"]
    done = subprocess.run(
        [str(NLD), "launch", *words, "--site", "elsewhere.env"],
        cwd=folder,
        env=slurm.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "nld: Slurm refuses the job: invalid partition" in done.stderr, done.stderr
    assert slurm.run("squeue", "-h") == "" and not (folder / "out/refused").exists()


def test_a_stopped_job_goes_on_by_itself_to_the_bits_of_nld_train(
    slurm: Cluster, folder: Path, run: Callable[..., str]
) -> None:
    """Two nodes, a rank on each; stopped as a time limit does it."""
    placed = ["--executor", "nemo-run", "--nodes", 2, "--site", "slurm/site.env"]
    number = run(NLD, "launch", "tiny_stage1_ar", *settings("out/nemo", 100), *placed).strip()
    deadline = time.monotonic() + STARTED
    while len(curve(folder / "out/nemo")) < 5:
        assert time.monotonic() < deadline, slurm.logs()
        time.sleep(0.2)
    slurm.run("scancel", "--signal=USR1", number)  # what --signal=USR1@... sends, to the same processes
    ended(slurm, number, folder)
    assert slurm.job(number)["Restarts"] == "1"
    report = run(NLD, "jobs", "out/nemo")
    assert "asked to stop, saved" in report and "finished" in report, report

    run(NLD, "train", "tiny_stage1_ar", *settings("out/alone", 100))
    assert len(curve(folder / "out/nemo")) == 100
    assert curve(folder / "out/nemo") == curve(folder / "out/alone")


def test_the_lines_of_the_readme_run(slurm: Cluster, folder: Path, run: Callable[..., str]) -> None:
    """Two runs of one experiment. The second waits for the nodes, and trains what its copy of the code says by then."""
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (folder / "sweep.py").write_text(lines)
    words = [word for word in settings("", 5) if not word.startswith("output=")]
    run(sys.executable, "sweep.py", "tiny_stage1_ar", *words)
    numbers = sorted(slurm.run("squeue", "-h", "-o", "%A").split(), key=int)
    assert len(numbers) == 2
    names = {slurm.job(number)["JobName"]: number for number in numbers}
    assert set(names) == {"nld.lr_1e-3", "nld.lr_3e-3"}
    waiting = next(name for name, number in names.items() if number == numbers[1]).removeprefix("nld.")
    (recipe,) = folder.glob(f"nemo/experiments/rates/*/{waiting}/code/recipes/tiny_stage1_ar.py")
    recipe.write_text(recipe.read_text().replace('name="tiny_stage1_ar"', 'name="edited"'))
    for number in numbers:
        ended(slurm, number, folder)
    for name in ("lr_1e-3", "lr_3e-3"):
        assert len(curve(folder / "out" / name)) == 5
        frozen = json.loads((folder / "out" / name / "run.json").read_text())
        assert frozen["name"] == ("edited" if name == waiting else "tiny_stage1_ar")
        assert f"{frozen['optimizer']['lr']:.0e}" == name.removeprefix("lr_").replace("e-3", "e-03")
    assert not os.path.exists(folder / "nld_train"), "the code is the copy alone"
