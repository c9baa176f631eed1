"""Runs that are stopped, killed, damaged, or sick, with the real `nld train`: what is kept, and what is said."""

import io
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from nld_train.exit_status import STOPPED
from nld_train.run_folder.checkpoints import MANIFEST, checkpoint_problem, complete_steps, newest_complete_step
from nld_train.run_folder.metrics import read_metrics
from nld_train.run_folder.paths import METRICS, step_folder
from tests.flow.started import Started, alive
from tests.saved import flip

pytestmark = pytest.mark.megatron
ENDLESS = "train.iterations=100000"
NEVER_EVALUATE = ["train.eval_batches=0"]
KILLS, STEPS = 10, 60


def test_a_run_is_stopped_by_signals_and_goes_on(prepared: Path, tmp_path: Path) -> None:
    """Saving beside the training: SIGTERM to the launcher; then, past a damaged checkpoint, SIGUSR1 to everything."""
    settings = ["--nproc", "1", "checkpoint.interval=5", "checkpoint.asynchronous=True", *NEVER_EVALUATE, ENDLESS]
    run = Started(prepared, tmp_path / "run", *settings)
    run.wait_for_step(12)
    asked_at = run.reached()
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == STOPPED, run.said[-3000:]
    stopped_at = check_stopped(run, asked_at)

    newer = step_folder(run.output, stopped_at + 1)
    shutil.copytree(step_folder(run.output, stopped_at), newer)
    flip(newer / "__0_0.distcp")
    run = Started(prepared, tmp_path / "run", *settings)
    run.wait_for_step(stopped_at + 3)
    asked_at = run.reached()
    run.signal_all(signal.SIGUSR1)
    assert run.end() == STOPPED, run.said[-3000:]
    assert f"{newer.name}/__0_0.distcp is not what was saved" in run.said
    assert f"resuming tiny_stage2_joint at step {stopped_at} from" in run.said
    check_stopped(run, asked_at)


def check_stopped(run: Started, asked_at: int) -> int:
    """Stopped within a step, whole, every step logged once. Returns the step."""
    step = newest_complete_step(run.output)
    assert step is not None and step == max(run.steps())
    # The request may come while a step is under way; logged steps are seen a moment late.
    assert asked_at <= step <= asked_at + 2
    assert checkpoint_problem(step_folder(run.output, step), contents=True) is None
    assert run.steps() == list(range(1, step + 1))
    assert f"stopped at step {step} of 100000, saved" in run.said
    return step


@pytest.mark.long
def test_ten_kills_change_nothing(prepared: Path, tmp_path: Path) -> None:
    """Killed at random moments, also inside saves, and started again: the curve and the weights of an undisturbed run,
    bit for bit. Every other start saves beside the training."""
    settings = ["--nproc", "2", f"train.iterations={STEPS}", "checkpoint.interval=3", "train.eval_interval=20"]
    settings += ["train.eval_batches=1"]
    undisturbed = Started(prepared, tmp_path / "undisturbed", *settings)
    assert undisturbed.end() == 0, undisturbed.said[-3000:]
    seed = random.randrange(1 << 32)
    print(f"moments of the kills: seed {seed}")
    draw = random.Random(seed)
    killed = []
    for number in range(KILLS):
        run = Started(prepared, tmp_path / "killed", *settings, f"checkpoint.asynchronous={number % 2 == 1}")
        killed.append(kill_at_random(run, draw, number))
    print(f"killed at steps {killed}")
    last = Started(prepared, tmp_path / "killed", *settings)
    assert last.end() == 0, last.said[-3000:]
    assert curve(last.output) == curve(undisturbed.output)
    assert contents(step_folder(last.output, STEPS)) == contents(step_folder(undisturbed.output, STEPS))


def kill_at_random(run: Started, draw: random.Random, number: int) -> int:
    """SIGKILL everything: every third time as soon as a checkpoint is being written, else some steps further on."""
    reached = max(complete_steps(run.output), default=0)
    target = reached + draw.randint(2, max(2, (STEPS - 6 - reached) // (KILLS - number)))
    run.wait_for_step(min(target, STEPS - 5))
    if number % 3 == 0:
        run.wait_until(lambda: unfinished(run.output))
        time.sleep(draw.random() * 0.05)
    else:
        time.sleep(draw.random() * 0.3)
    for pid in run.processes():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    run.end()
    return run.reached()


def unfinished(output: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(not (folder / MANIFEST).exists() for folder in (output / "checkpoints").glob("iter_*"))


def curve(output: Path) -> list[dict]:
    """Everything that is logged but the speed."""
    return [
        {name: value for name, value in entry.items() if name != "tokens/s"} for entry in read_metrics(output / METRICS)
    ]


def contents(folder: Path) -> dict[tuple, object]:
    """Weights, optimizer and counters of a checkpoint, bit for bit. Not the files' own bytes: pickles of equal objects
    may differ in what they share. Not torch's generator: starting loaders draw from it, and nothing else does."""
    found = {}
    for place, stored in FileSystemReader(folder).read_metadata().storage_data.items():
        if place.fqn.startswith("rng_state"):
            continue
        with (folder / stored.relative_path).open("rb") as file:
            file.seek(stored.offset)
            value = torch.load(io.BytesIO(file.read(stored.length)), weights_only=False)
        found[place.fqn, place.offset, place.index] = plain(value)
    return found


def plain(value: object) -> object:
    """The same value without arrays, so that == compares all of it."""
    if isinstance(value, torch.Tensor | numpy.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.mark.long
def test_a_rank_that_dies_takes_the_run_down_within_a_minute(prepared: Path, tmp_path: Path) -> None:
    """Killed while the other rank waits for it in a collective."""
    run = Started(prepared, tmp_path / "run", "--nproc", "2", ENDLESS, *NEVER_EVALUATE)
    run.wait_for_step(5)
    first, second = run.ranks()
    os.kill(first, signal.SIGSTOP)
    reached = run.reached()
    time.sleep(2)
    assert run.reached() <= reached + 1, "the other rank does not wait for it"
    os.kill(first, signal.SIGKILL)
    since = time.monotonic()
    assert run.end() == 1
    assert time.monotonic() - since < 60
    assert "failed: rank 0 was killed by SIGKILL" in run.said
    assert not alive(second)


@pytest.mark.long
def test_a_killed_launcher_leaves_no_rank_behind(prepared: Path, tmp_path: Path) -> None:
    run = Started(prepared, tmp_path / "run", "--nproc", "2", ENDLESS, *NEVER_EVALUATE, "checkpoint.asynchronous=True")
    run.wait_for_step(5)
    below = run.processes()[1:]
    run.process.kill()
    run.end()
    end = time.monotonic() + 20
    while left := [pid for pid in below if alive(pid)]:
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.1)


@pytest.mark.long
def test_a_loss_that_is_no_number_stops_the_run(prepared: Path, tmp_path: Path) -> None:
    """A learning rate that sends every weight far away, after a first step of warm-up: the third has no loss."""
    far = ["optimizer.lr=1e15", "optimizer.min_lr=0", "train.iterations=20", "checkpoint.interval=5", *NEVER_EVALUATE]
    run = Started(prepared, tmp_path / "run", "--nproc", "2", *far)
    assert run.end() == 1
    assert (
        "step 3: gradient norm nan, loss not finite (rank 0 nan with samples 16, 17, 18, 19; "
        "rank 1 nan with samples 20, 21, 22, 23); no weight was changed, nothing was saved\n"
    ) in run.said
    assert run.said.count("gradient norm nan") == 1
    assert run.steps() == [1, 2]
    assert complete_steps(run.output) == []


@pytest.mark.long
def test_a_gradient_norm_that_stands_out_is_told_and_recorded(prepared: Path, tmp_path: Path) -> None:
    run = Started(prepared, tmp_path / "run", "--nproc", "1", "train.iterations=60", "log.spike=1.05", *NEVER_EVALUATE)
    assert run.end() == 0, run.said[-3000:]
    entries = read_metrics(run.output / METRICS)
    spikes = [entry for entry in entries if entry["kind"] == "spike"]
    norms = {entry["step"]: entry["gradient norm"] for entry in entries if entry["kind"] == "train"}
    assert spikes, "5 % above the median is nothing rare"
    for spike in spikes:
        step = spike["step"]
        assert spike["gradient norm"] == norms[step] > 1.05 * spike["median"]
        assert (spike["first sample"], spike["last sample"]) == (8 * (step - 1), 8 * step - 1)
        assert f"{step}  warning: gradient norm" in run.said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"NOT TESTED: a full disk; no filesystem can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.long
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_leaves_the_checkpoint_before(
    prepared: Path, small_disk: Path, tmp_path: Path, asynchronous: bool
) -> None:
    settings = ["--nproc", "2", "train.iterations=40", "checkpoint.interval=10", *NEVER_EVALUATE]
    settings.append(f"checkpoint.asynchronous={asynchronous}")
    run = Started(prepared, small_disk / "run", *settings, log=tmp_path / "log")
    run.wait_until(lambda: complete_steps(run.output) == [10])
    one = sum(path.stat().st_size for path in step_folder(run.output, 10).iterdir())
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(shutil.disk_usage(small_disk).free - one // 2))
    assert run.end() == 1
    told = [line for line in run.said.splitlines() if "No space left on device" in line]
    assert told and "the checkpoint of step 10 is whole; make room and give the same command again" in told[0]
    assert checkpoint_problem(step_folder(run.output, 10), contents=True) is None
    filler.unlink()
    run = Started(prepared, small_disk / "run", *settings, log=tmp_path / "log")
    assert run.end() == 0, run.said[-3000:]
    assert run.steps() == list(range(1, 41))
