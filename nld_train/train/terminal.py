"""Keeps the terminal for the run's progress: everything the libraries print goes to a log file per rank."""

import os
import sys
import traceback
from pathlib import Path
from typing import TextIO

from nld_train.train.folder import logs


def rank_log(output: str, rank: int) -> Path:
    return logs(output) / f"rank_{rank}.log"


def take(output: str, rank: int) -> TextIO:
    """Send this process's stdout and stderr to OUTPUT/logs/rank_N.log; return the terminal they went to before.

    Done on the file descriptors, so that compiled libraries and child processes follow.
    """
    terminal = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    log = os.open(rank_log(output, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)
    return terminal


def tell_failure(terminal: TextIO, output: str, rank: int, error: BaseException) -> None:
    """Show what ended a rank, and where the rest of its log is."""
    traceback.print_exception(error)
    last = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    terminal.write(f"rank {rank} failed: {last}\n  full log: {rank_log(output, rank)}\n")
    terminal.flush()
