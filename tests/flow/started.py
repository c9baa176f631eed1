"""`nld train` as a process that tests watch, signal and kill."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nld_train.run_folder.metrics import read_metrics_so_far
from nld_train.run_folder.paths import METRICS

SMALL = ["model.layers=2", "model.hidden=64", "model.ffn=128", "data.sequence_length=64", "diffusion.block_size=8"]
SHORT = ["optimizer.warmup_iterations=1", "optimizer.decay_iterations=0", "log.interval=1"]
PATIENCE = 400  # seconds; a start takes 40 on 2 idle cores, and minutes on busy ones


def run_words(prepared: Path, output: Path, *overrides: str) -> list[str]:
    """The words after `nld train`: the tiny joint stage on 400 tokens of vocabulary."""
    data = [f"data.blend={prepared}/data/a", f"data.tokenizer={prepared}/tokenizer", "model.vocab_size=400"]
    return ["tiny_stage2_joint", "init=none", *SMALL, *SHORT, *data, f"output={output}", *overrides]


class Started:
    """A run as a process."""

    def __init__(
        self,
        prepared: Path,
        output: Path,
        *overrides: str,
        log: Path | None = None,
        reader: Sequence[str] | None = None,
    ) -> None:
        """reader: a command that reads what the run says and writes the log; (): the run writes it."""
        self.output = output
        self.log = log or output.with_name(f"{output.name}.log")
        self.begins = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "nld_train.cli", "train", *run_words(prepared, output, *overrides)]
        with self.log.open("a") as terminal:
            if not reader:
                self.process = subprocess.Popen(command, stdout=terminal, stderr=subprocess.STDOUT)
                return
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            subprocess.Popen(reader, stdin=self.process.stdout, stdout=terminal)
            assert self.process.stdout is not None
            self.process.stdout.close()  # the reader alone holds it

    @property
    def said(self) -> str:
        """What this start wrote to the terminal."""
        return self.log.read_bytes()[self.begins :].decode()

    def reached(self) -> int:
        """The last step that this start has taken."""
        return max((int(step.replace(",", "")) for step in re.findall(r"step +([\d,]+)/", self.said)), default=0)

    def steps(self) -> list[int]:
        """Training steps in metrics.jsonl."""
        return [entry["step"] for entry in read_metrics_so_far(self.output / METRICS) if entry["kind"] == "train"]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as the condition holds; fails where the run ends before."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"ended with status {self.process.returncode}: {self.said[-3000:]}"
            assert time.monotonic() < end, f"waited {PATIENCE} s: {self.said[-3000:]}"
            time.sleep(0.01)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: self.reached() >= step)

    def end(self) -> int:
        """The exit status, when it has ended."""
        return self.process.wait(PATIENCE)

    def processes(self) -> list[int]:
        """Ids of the launcher and of everything below it."""
        found, below = [], [self.process.pid]
        while below:
            found += below
            below = [child for parent in below for child in children(parent)]
        return found

    def ranks(self) -> list[int]:
        """Process ids of the ranks, by rank."""
        by_rank: dict[int, int] = {}
        for pid in self.processes():  # a rank comes before its loader workers, which look alike
            if (rank := rank_of(pid)) is not None:
                by_rank.setdefault(rank, pid)
        return [by_rank[rank] for rank in sorted(by_rank)]

    def signal_all(self, number: signal.Signals) -> None:
        """What Slurm does: the signal to every process of the job."""
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # it had ended


def children(pid: int) -> list[int]:
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in read_children(task)]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return []


def read_children(task: Path) -> list[str]:
    return (task / "children").read_text().split()


def alive(pid: int) -> bool:
    """Whether a process runs: not gone, and not only waiting for its parent to notice."""
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def rank_of(pid: int) -> int | None:
    """The rank that a process is; None for any other."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    named = [variable.removeprefix("RANK=") for variable in variables if variable.startswith("RANK=")]
    return int(named[0]) if named and "nld_train.train.rank" in command else None
