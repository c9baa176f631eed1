"""How far an evaluation is, and how much time it has left: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)
LINE_SECONDS = 30.0  # between lines where there is no terminal


class EvaluationProgress:
    """Counts what is done of `total` things."""

    def __init__(self, title: str, total: int, bar: Progress) -> None:
        self.title, self.total, self.bar = title, total, bar
        self.task = bar.add_task(title, total=total)
        self.done, self.began = 0, time.monotonic()
        self.said = self.began

    def advance(self, count: int, doing: str = "") -> None:
        """`count` more things are done. doing: what comes next, for the bar."""
        self.done += count
        self.bar.update(self.task, advance=count, description=doing or self.title)
        now = time.monotonic()
        if self.bar.disable and now - self.said >= LINE_SECONDS:
            self.said = now
            left = (now - self.began) / self.done * (self.total - self.done)
            logger.info("%s: %d/%d, %.1f min left", self.title, self.done, self.total, left / 60)


@contextmanager
def evaluation_progress(title: str, total: int) -> Iterator[EvaluationProgress]:
    """A bar of `total` things, which disappears at the end."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield EvaluationProgress(title, total, bar)
