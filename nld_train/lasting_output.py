"""A run outlives its terminal: a closed pipe, a dead tee or a lost connection ends no training."""

import os
import signal
import sys
from typing import Any, TextIO, cast


class _LastingStream:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        """Send the file descriptor, and what the stream still holds, nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def lasting_stream(stream: TextIO) -> TextIO:
    """The stream, but its failures to write are no errors: what it is given from then on goes nowhere."""
    return cast(TextIO, _LastingStream(stream))


def outlive_terminal() -> None:
    """Let this process and those that it starts go on when the terminal is gone. Called before anything is printed."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # it was closed before the start; the next file that is opened would take its place
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))
    sys.stdout, sys.stderr = lasting_stream(sys.stdout), lasting_stream(sys.stderr)
