"""Recipes by nemo-run: the exact scripts (golden files, made again with NLD_GOLDEN=write), and how bash reads them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.errors import UserError
from nld_train.launch.nemo_home import prepare_nemo_run
from nld_train.launch.sbatch_script import Submission
from nld_train.launch.site import DEFAULTS, Site
from nld_train.launch.submit import plan_submission
from nld_train.run_folder.paths import JOBS

pytestmark = pytest.mark.slow  # nemo-run takes 5 s to import

GOLDEN = Path(__file__).with_name("golden")
ROOT = Path(__file__).parents[2]
FOLDER = Path("/shared/nld-train")
H100 = {
    **DEFAULTS,
    "NLD_ACCOUNT": "team",
    "NLD_PARTITION": "gpu",
    "NLD_TIME": "4:00:00",
    "NLD_GPUS_PER_NODE": "8",
    "NLD_FOLDER": str(FOLDER),
    "NLD_COMMAND": ".venv/bin/nld",
}
IMAGE = {"NLD_COMMAND": "nld", "NLD_IMAGE": "/images/nemo.sqsh", "NLD_MOUNTS": "/shared:/shared,/data:/data"}
SITES = {
    "nemo_slurm": {"NLD_SETUP": "module load cuda/13.0", "NLD_SBATCH": "--qos=high --comment='two words' --contiguous"},
    "nemo_slurm_pyxis": {**IMAGE, "NLD_CONTAINER": "pyxis"},
    "nemo_slurm_apptainer": {**IMAGE, "NLD_CONTAINER": "apptainer"},
    "nemo_slurm_cpu": {"NLD_GPUS_PER_NODE": "0", "NLD_ACCOUNT": "none"},
}
WORDS = ("data.blend=0.7:data/a,0.3:c", "log.interval=5")


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The shells that nemo-run starts read along, which pytest forbids."""
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield


def site_of(name: str) -> Site:
    return Site(Path("site.env"), {**H100, **SITES[name]}, {"NCCL_IB_HCA": "mlx5", "NCCL_DEBUG_FILE": "/tmp/two words"})


def job_of(name: str, words: tuple[str, ...] = WORDS, after: str | None = None) -> Submission:
    known = "tiny_stage1_ar" if name == "nemo_slurm_cpu" else "nld_8b_stage2_joint"
    nodes = 2 if name == "nemo_slurm_cpu" else None
    return plan_submission(recipe.load_recipe(known, words), known, words, nodes, after, site_of(name))


def written(name: str, **given: object) -> str:
    """The script of a submission, with nemo-run's folder where the run's output would have it."""
    job = job_of(name, **given)  # type: ignore[arg-type]
    run = recipe.load_recipe(job.recipe, job.overrides)
    prepare_nemo_run(FOLDER / run.output)
    from nld_train.launch import nemo_experiment

    before = nemo_experiment.get_nemorun_home()
    nemo_experiment.set_nemorun_home(str(FOLDER / run.output / "nemo"))
    try:
        return nemo_experiment.SlurmSubmission(run, job, site_of(name), number=f"{run.name}_1").script()
    finally:
        nemo_experiment.set_nemorun_home(before)


@pytest.mark.parametrize("name", SITES)
def test_the_script_is_the_golden_one(name: str) -> None:
    path = GOLDEN / f"{name}.sbatch"
    text = written(name)
    if os.environ.get("NLD_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_a_run_waits_for_the_one_before() -> None:
    text = written("nemo_slurm", after="123")
    assert "#SBATCH --dependency=afterok:123\n" in text and "#SBATCH --kill-on-invalid-dep=yes\n" in text


def test_the_local_executor_is_a_torchrun() -> None:
    run = recipe.load_recipe("tiny_stage1_ar", WORDS)
    path = GOLDEN / "nemo_local.sh"
    prepare_nemo_run(Path(run.output))
    from nld_train.launch.nemo_experiment import local_command

    text = local_command(run, "tiny_stage1_ar", list(WORDS))
    text = text.replace(str(Path(sys.executable).parent), "VENV")
    if os.environ.get("NLD_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script with an srun that stands for Slurm's: it writes its words down, and `does` what ranks would do to
    the record of the run. An scontrol writes its words down as well."""
    for program, text in (
        ("srun", 'printf "%s\\n" "$@" > "$HERE/srun.$(wc -l < "$HERE/calls")"; echo >> "$HERE/calls"; eval "$DOES"'),
        ("scontrol", 'echo "$@" >> "$HERE/asked"'),
    ):
        (tmp_path / program).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / program).chmod(0o755)
    (tmp_path / "calls").touch()

    def run(script: str, does: str = "") -> subprocess.CompletedProcess[str]:
        slurm = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "96", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "n"}
        own = {"HERE": str(tmp_path), "DOES": does, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        text = script.replace(str(FOLDER), str(tmp_path)).replace("module load", ": module load")
        return subprocess.run(
            ["bash"], input=text, env={**os.environ, **slurm, **own}, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize("name", SITES)
def test_bash_gives_srun_the_words_whole(
    name: str, job: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = job(written(name), does='printf "%s %s" "$NCCL_DEBUG_FILE" "$SRUN_CPUS_PER_TASK" > "$HERE/variables"')
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "srun.1").read_text().splitlines()
    assert words[-4:] == ["train", *(["nld_8b_stage2_joint"] if "cpu" not in name else ["tiny_stage1_ar"]), *WORDS]
    shell = words[words.index("bash") : words.index("torchrun")]
    assert shell[1] == "-c" and shell[3:] == ["bash"] and shell[2].endswith('exec "$@"')
    assert ("apptainer" in words) == (name == "nemo_slurm_apptainer")
    assert ("--container-image" in words) == (name == "nemo_slurm_pyxis")
    assert (tmp_path / "variables").read_text() == "/tmp/two words 96"


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (0, False), (1, False)])
def test_only_a_run_that_saved_before_its_end_is_queued_again(
    status: int, requeued: bool, job: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    record = tmp_path / recipe.load_recipe("tiny_stage1_ar").output / JOBS
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"event": "end", "status": 75}) + "\n")  # of an earlier start
    line = json.dumps({"event": "end", "status": status})
    script = written("nemo_slurm_cpu")
    assert job(script).returncode == 0
    assert not asked_again(tmp_path), "of a start that the run did not even record"
    done = job(script, does=f"echo '{line}' >> {record}; exit {1 if status == 1 else 0}")
    assert done.returncode == (1 if status == 1 else 0), done.stderr
    assert asked_again(tmp_path) == requeued


def asked_again(folder: Path) -> bool:
    calls = (folder / "asked").read_text().splitlines()
    assert set(calls) <= {"show hostnames n", "requeue 7"}
    return "requeue 7" in calls


@pytest.mark.parametrize("word", ["data.blend=0.7:a b,0.3:c", "output=$HOME/x", "output=/data/nemo_run/x"])
def test_words_that_nemo_run_would_change_are_refused(word: str) -> None:
    with pytest.raises(UserError, match="a recipe file of your own"):
        written("nemo_slurm", words=(word,))


def test_short_options_of_sbatch_are_refused() -> None:
    prepare_nemo_run(Path("out"))
    from nld_train.launch.nemo_experiment import SlurmSubmission

    site = site_of("nemo_slurm")
    short = Site(site.path, {**site.values, "NLD_SBATCH": "-q high"}, site.environment)
    with pytest.raises(UserError, match="NLD_SBATCH.*--name=value"):
        SlurmSubmission(recipe.load_recipe("nld_8b_stage2_joint"), job_of("nemo_slurm"), short)


def nld(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nld_train.cli", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **more},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_cannot_run_is_refused_before_nemo_run_starts_it(tmp_path: Path) -> None:
    words = ("tiny_stage1_ar", f"output={tmp_path}/run", f"data.blend={tmp_path}/none")
    done = nld("launch", *words, "--executor", "nemo-run", "--nemo", "local")
    assert done.returncode == 2 and f"nld: no file {tmp_path}/none.idx" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def settings(prepared: Path, output: Path, steps: int) -> list[str]:
    return [
        f"train.iterations={steps}",
        "train.eval_batches=0",
        "optimizer.warmup_iterations=0",
        f"data.blend={prepared}/data/a",
        f"data.tokenizer={prepared}/tokenizer",
        "data.sequence_length=64",
        "data.workers=0",
        "log.interval=1",
        f"output={output}",
    ]


def curve(folder: Path) -> list[tuple[float, ...]]:
    """(step, loss, gradient norm) of every step."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "AR loss", "gradient norm")
    return [tuple(entry[name] for name in kept) for entry in entries if entry["kind"] == "train"]


@pytest.mark.long
def test_a_ctrl_c_before_there_is_anything_to_save_leaves_at_once(prepared: Path, tmp_path: Path) -> None:
    words = ["tiny_stage1_ar", *settings(prepared, tmp_path / "run", 100), "--executor", "nemo-run", "--nemo", "local"]
    process = subprocess.Popen([sys.executable, "-m", "nld_train.cli", "launch", *words], cwd=ROOT)
    end = time.monotonic() + 120
    while not (ranks := list(tmp_path.glob("run/nemo/experiments/*/*/*/nemo_run/*/*/0/stdout.log"))):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not (tmp_path / "run" / JOBS).exists(), ranks[0].read_text()


@pytest.mark.long
@pytest.mark.megatron
def test_a_local_run_stops_as_asked_and_goes_on_to_the_bits_of_nld_train(prepared: Path, tmp_path: Path) -> None:
    """By nemo-run's local executor: a Ctrl-C saves, the same command goes on."""
    words = ["launch", "tiny_stage1_ar", *settings(prepared, tmp_path / "nemo", 100)]
    words += ["--executor", "nemo-run", "--nemo", "local"]
    command = [sys.executable, "-m", "nld_train.cli", *words]
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        wait_for_steps(tmp_path / "nemo", 3, first)
        first.send_signal(signal.SIGINT)
        assert first.wait(300) == 75, (tmp_path / "first.log").read_text()[-3000:]
    stopped = len(curve(tmp_path / "nemo"))
    assert 3 <= stopped < 100
    second = nld(*words)
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-3000:]
    again = nld(*words)
    assert again.returncode == 0 and "is finished" in again.stdout + again.stderr

    alone = nld("train", "tiny_stage1_ar", *settings(prepared, tmp_path / "alone", 100))
    assert alone.returncode == 0, alone.stderr
    assert len(curve(tmp_path / "nemo")) == 100
    assert curve(tmp_path / "nemo") == curve(tmp_path / "alone")


def wait_for_steps(folder: Path, count: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while not (folder / "metrics.jsonl").exists() or len(curve(folder)) < count:
        assert process.poll() is None and time.monotonic() < end, f"no {count} steps in {folder}"
        time.sleep(0.1)
