"""What a person sees of a long evaluation."""

import io
import re

from nld_train.evaluation import oracle_progress
from nld_train.evaluation.oracle_progress import progress_display


class Terminal(io.StringIO):
    """A place for text that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_come_now_and_then_with_the_time_left(monkeypatch) -> None:
    """Half of the work was done by an earlier run, and is there at once; a tenth takes 4 seconds."""
    now = [0.0]
    monkeypatch.setattr(oracle_progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with progress_display("speed", 100, out) as advance:
        advance(50)
        for _ in range(5):
            now[0] += 16.0
            advance(10)
    lines = out.getvalue().splitlines()
    assert lines == ["speed: 70 %, 32 s, 48 s left", "speed: 90 %, 64 s, 16 s left", "speed: 100 %, 80 s, 0 s left"]


def test_a_terminal_shows_a_bar_with_the_time_left() -> None:
    out = Terminal()
    with progress_display("speed", 4, out) as advance:
        advance(1)
    assert re.search("speed.*25%.*left", out.getvalue())
