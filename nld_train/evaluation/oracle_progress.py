"""How far an evaluation is, and how long it will take: a bar on a terminal, else a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY = 30.0  # seconds


@contextmanager
def progress_display(name: str, total: int, out: TextIO) -> Iterator[Callable[[int], None]]:
    """Within this context, the function given is called with so many of the `total` units of work that are done."""
    if not out.isatty():
        yield _line_writer(name, total, out)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    left = (TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, *left, console=Console(file=out, force_terminal=True), transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda units: bar.advance(task, units)


def _line_writer(name: str, total: int, out: TextIO) -> Callable[[int], None]:
    """Writes a line at most every LINE_EVERY seconds, and one at the end. What was done before the first second is
    taken to be that of an earlier run, and tells nothing of the time left."""
    start = said = time.monotonic()
    done = known = 0

    def advance(units: int) -> None:
        nonlocal done, known, said
        done, now = done + units, time.monotonic()
        if now - start < 1:
            known = done
        if now - said >= LINE_EVERY or done == total:
            rate = (done - known) / (now - start)
            left = f"{(total - done) / rate:,.0f} s left" if rate > 0 else "time left unknown"
            out.write(f"{name}: {100 * done / total:.0f} %, {now - start:,.0f} s, {left}\n")
            out.flush()
            said = now

    return advance
