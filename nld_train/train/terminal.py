"""Keeps the terminal for the run's progress: everything the libraries print goes to a log file per rank."""

import contextlib
import errno
import logging
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import TextIO

from nld_train.errors import UserError
from nld_train.lasting_output import lasting_stream
from nld_train.run_folder.checkpoints import checkpoint_steps, complete_steps
from nld_train.run_folder.paths import rank_log, step_folder

logger = logging.getLogger(__name__)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
SHARED_MEMORY = ("DataLoader worker", "SemLock")  # in the traceback where workers ended, or could not be started
SAVING = ("save_checkpoint", "maybe_finalize_async_save")  # Megatron-Bridge's functions that a failed save leaves


def redirect_to_log(output: str, rank: int) -> TextIO:
    """Send this process's stdout and stderr to OUTPUT/logs/rank_N.log; return the terminal they went to before.

    Done on the file descriptors, so that compiled libraries and child processes follow.
    """
    terminal = lasting_stream(os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1))
    log = os.open(rank_log(output, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)
    return terminal


def tell_line(terminal: TextIO, line: str) -> None:
    """Log a warning, and show it."""
    logger.warning(line)
    terminal.write(f"{line}\n")
    terminal.flush()


class SharedFailure(Exception):
    """A failure that every rank knows alike, with a message that says all: the first rank tells it."""


def tell_failure(terminal: TextIO, output: str, rank: int, error: BaseException) -> None:
    """Log what ended a rank; then show it, and where the rest of the log is."""
    reason = _failure_reason(output, rank, error)
    with contextlib.suppress(OSError):  # the disk of the log may be the full one
        traceback.print_exception(error)
        logger.error(reason)
    if rank == 0 or not isinstance(error, SharedFailure):
        terminal.write(f"{reason}\n  full log: {rank_log(output, rank)}\n")
        terminal.flush()


def _failure_reason(output: str, rank: int, error: BaseException) -> str:
    """One line."""
    if isinstance(error, SharedFailure):
        return str(error)
    if isinstance(error, UserError):
        return f"rank {rank}: {error}"
    if any(name in "".join(traceback.format_exception(error)) for name in SHARED_MEMORY):
        return f"rank {rank} failed: no rows from the loader's workers: {shared_memory_text()}"
    full = _disk_full_reason(Path(output), error)
    if full is None:
        return f"rank {rank} failed: {''.join(traceback.format_exception_only(error)).strip().splitlines()[-1]}"
    steps = complete_steps(Path(output))
    kept = f"the checkpoint of step {steps[-1]} is whole" if steps else "there is no earlier checkpoint"
    return f"rank {rank} failed: {full}; {kept}; make room and give the same command again"


def shared_memory_text() -> str:
    """How much shared memory there is, which loader workers hand their rows over in, and what to do."""
    there = shutil.disk_usage("/dev/shm")
    room = f"/dev/shm has {there.free / 1e6:,.1f} of {there.total / 1e6:,.1f} MB free"
    return f"{room}; in a container give it more (docker run --shm-size=8g), or set data.workers=0"


def _disk_full_reason(output: Path, error: BaseException) -> str | None:
    """That the disk is full, if it is what ended a rank, else None.

    Megatron's writers hand on that they failed, and not why: a save that fails on a disk without room for another
    checkpoint is taken to have failed for it.
    """
    text = "".join(traceback.format_exception(error))
    for number in NO_SPACE:
        if os.strerror(number) in text:
            return f"{os.strerror(number)}: {output}"
    free = shutil.disk_usage(output).free
    folders = [step_folder(output, step) for step in checkpoint_steps(output)]
    sizes = [sum(file.stat().st_size for file in folder.rglob("*")) for folder in folders]
    if not any(f"in {function}" in text for function in SAVING) or free >= max(sizes, default=0):
        return None
    return (
        f"{os.strerror(errno.ENOSPC)}: {output} has {free / 1e9:.3f} GB, a checkpoint takes {max(sizes) / 1e9:.3f} GB"
    )
