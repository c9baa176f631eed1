"""Ranks that are forked from a process that has imported Megatron: importing it takes longer than a small run does."""

import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nld_train.signals import end_children


@contextmanager
def output_into(log: Path) -> Iterator[None]:
    """What the block and the libraries that it imports write to the terminal goes to the end of a file instead."""
    sys.stdout.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with log.open("a") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def fork_rank(rank: int, ranks: int, port: int, log: Path, work: Callable[[], None]) -> int:
    """Do `work` in a child that has torch's variables of one of `ranks` ranks and writes to `log`.

    Returns: the child's process number; its status is 0, or 1 where the work raised, and the log then ends with why.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ |= {
            **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        end_children()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
