"""`nld` as a person gives it, in processes that end with this one and within its time."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nld_train.bench.measure import TimeBudget
from nld_train.exit_status import FINISHED

logger = logging.getLogger(__name__)
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
CHARACTERS = 200  # of what a command said last


class CommandFailure(Exception):
    """A command that did not end well. what: its purpose; cut: whether its time was up."""

    def __init__(self, what: str, said: str, cut: bool) -> None:
        self.what, self.cut = what, cut
        super().__init__(said)


@dataclass
class RunningCommand:
    """A command, its purpose, the file of what it says, and when it was started."""

    what: str
    process: subprocess.Popen[bytes]
    log: Path
    began: float


class NldCommands:
    """Runs commands one after another or side by side; those that still run at the end are killed."""

    def __init__(self, folder: Path, budget: TimeBudget) -> None:
        """folder: where the commands work; budget: seconds for all of them."""
        self.folder, self.budget = folder, budget
        self.started: list[RunningCommand] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for command in self.started:
            command.process.kill()  # its ranks die with it: signals.die_with_parent
            command.process.wait()

    def start(self, what: str, words: Sequence[str], on_cpu: bool = False) -> RunningCommand:
        """Start a command and go on. on_cpu: hide the GPUs from it."""
        log = self.folder / f"command_{len(self.started)}.log"
        with log.open("wb") as file:
            command = [sys.executable, "-m", "nld_train.cli", *words]
            environment = {**os.environ, **(NO_GPU if on_cpu else {})}
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        self.started.append(RunningCommand(what, process, log, time.monotonic()))
        return self.started[-1]

    def wait(self, command: RunningCommand) -> None:
        """Wait for its end, and say how long it took. Raises: CommandFailure."""
        try:
            status = command.process.wait(timeout=max(1.0, self.budget.left))
        except subprocess.TimeoutExpired:
            raise CommandFailure(command.what, "cut: its time was up", cut=True) from None
        if status != FINISHED:
            raise CommandFailure(command.what, f"status {status}: {failure_said(command.log.read_text())}", cut=False)
        logger.info("%s: %.0f s", command.what, time.monotonic() - command.began)

    def run(self, what: str, words: Sequence[str], on_cpu: bool = False) -> None:
        """Start a command and wait for its end. Raises: CommandFailure."""
        self.wait(self.start(what, words, on_cpu))


def failure_said(text: str) -> str:
    """The line of a failed command that says why: a rank's, or else its last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["without a word"]
    told = next((line for line in lines if line.startswith(("rank ", "nld: "))), lines[-1])
    return told if len(told) <= CHARACTERS else f"{told[: CHARACTERS - 3]}..."
