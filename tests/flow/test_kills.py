"""A hundred SIGKILLs, from the first moment of a start on, change no bit of what a run ends with."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from nld_train.run_folder.checkpoints import MANIFEST, complete_steps
from nld_train.run_folder.metrics import read_metrics, read_metrics_so_far
from nld_train.run_folder.paths import METRICS, checkpoints_folder, step_folder
from tests.flow.started import Started, alive, children, run_words

pytestmark = [pytest.mark.megatron, pytest.mark.long]
FORKED, REAL = 90, 10
STEPS, INTERVAL = 240, 3
SETTINGS = ["--nproc", "2", f"train.iterations={STEPS}", f"checkpoint.interval={INTERVAL}", "train.eval_interval=80"]
SETTINGS += ["train.eval_batches=1", "checkpoint.keep=2"]
PATIENCE = 300  # seconds


class ForkedStarts:
    """The process of forked_launcher.py, and the one start that it runs."""

    def __init__(self, log: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.flow.forked_launcher"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("a"),
            text=True,
        )

    def start(self, words: list[str]) -> int:
        """The process number of the launcher."""
        assert self.process.stdin is not None
        print(json.dumps(words), file=self.process.stdin, flush=True)
        return int(self._answer())

    def end(self) -> int:
        """The exit status of the start, once it has ended."""
        return int(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        assert answer, "forked_launcher.py has ended"
        return answer


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[ForkedStarts]:
    starts = ForkedStarts(tmp_path / "forked.log")
    yield starts
    starts.process.kill()
    starts.process.wait()


def forked_words(prepared: Path, output: Path, *settings: str) -> list[str]:
    """--nproc is an option of the command; a recipe takes it as a setting."""
    plain = [word.replace("--nproc", "parallel.world_size=2") for word in settings if word != "2"]
    return run_words(prepared, output, *plain)


def test_a_hundred_kills_change_nothing(prepared: Path, tmp_path: Path, forked: ForkedStarts) -> None:
    began = time.monotonic()
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    forked.start(forked_words(prepared, undisturbed, *SETTINGS))
    assert forked.end() == 0, (tmp_path / "forked.log").read_text()[-5000:]
    seed = random.randrange(1 << 32)
    print(f"seed of the kills: {seed}")
    draw, kinds = random.Random(seed), Counter()
    for number in range(FORKED + REAL):
        settings = [*SETTINGS, f"checkpoint.asynchronous={number % 2 == 1}"]
        if number % (FORKED // REAL + 1) == 0:
            run = Started(prepared, killed, *settings)
            kinds["real", *kill(run.process.pid, killed, draw, number)] += 1
            run.end()
        else:
            launcher = forked.start(forked_words(prepared, killed, *settings))
            kinds["forked", *kill(launcher, killed, draw, number)] += 1
            forked.end()
        assert complete_steps(killed)[-1:] != [STEPS], f"finished after {number + 1} kills: raise STEPS"
    for kind, count in sorted(kinds.items()):
        print(f"{count:>4} {' '.join(kind)}")
    last = Started(prepared, killed, *SETTINGS)
    assert last.end() == 0, last.said[-3000:]
    print(f"{FORKED + REAL} kills in {time.monotonic() - began:.0f} s")
    assert curve(killed) == curve(undisturbed)
    assert contents(step_folder(killed, STEPS)) == contents(step_folder(undisturbed, STEPS))


def kill(launcher: int, output: Path, draw: random.Random, number: int) -> tuple[str, str]:
    """SIGKILL the launcher, one rank or everything, at one of three kinds of moments; returns which. Waits until all
    processes of the start are gone."""
    reached, unfinished = newest(output), saves(output)
    room = max(1, (STEPS - INTERVAL - reached) // (FORKED + REAL - number))
    moment = draw.choice(["at a random second", "while saving", "after some steps"])
    deadline = time.monotonic() + (draw.uniform(0, 6) if moment == "at a random second" else PATIENCE)
    conditions: dict[str, Callable[[], bool]] = {
        "at a random second": lambda: newest(output) >= STEPS - 2 * INTERVAL,
        "while saving": lambda: bool(saves(output) - unfinished),
        "after some steps": lambda: newest_logged(output) >= reached + min(room, draw.randint(1, 4)),
    }
    while time.monotonic() < deadline and alive(launcher) and not conditions[moment]():
        time.sleep(0.005)
    time.sleep(draw.random() * (0.3 if moment == "after some steps" else 0.05))
    everything = below(launcher)
    target = draw.choice(["launcher", "one rank", "everything"])
    ranks = children(launcher)
    if target == "one rank" and ranks:
        chosen = [draw.choice(ranks)]
    else:
        chosen = [launcher] if target == "launcher" else everything
    for pid in chosen:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    end = time.monotonic() + PATIENCE
    while left := [pid for pid in everything if alive(pid)]:
        assert time.monotonic() < end, f"killed {target}, still there: {left}"
        time.sleep(0.01)
    return moment, target


def below(pid: int) -> list[int]:
    """A process and everything that it has started."""
    return [pid, *(found for child in children(pid) for found in below(child))]


def newest(output: Path) -> int:
    return max(complete_steps(output), default=0)


def newest_logged(output: Path) -> int:
    return max((entry["step"] for entry in read_metrics_so_far(output / METRICS)), default=0)


def saves(output: Path) -> set[str]:
    """The checkpoints that are being written, or were cut off."""
    folders = checkpoints_folder(output).glob("iter_*")
    return {folder.name for folder in folders if not (folder / MANIFEST).exists()}


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
