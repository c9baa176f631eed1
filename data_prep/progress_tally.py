"""Progress of a preparation: a bar on a terminal, a log line every few seconds elsewhere."""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)
LOG_SECONDS = 5.0


@dataclass
class ProgressTally:
    """Work done so far, shown as it grows."""

    total_bytes: int
    bar: Progress | None  # None: log lines
    done_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    logged: float = field(default_factory=time.monotonic)

    def add(self, done_bytes: int, documents: int, tokens: int) -> None:
        self.done_bytes += done_bytes
        self.documents += documents
        self.tokens += tokens
        if self.bar is not None:
            self.bar.update(TaskID(0), completed=self.done_bytes, counts=self.counts())
        elif time.monotonic() - self.logged >= LOG_SECONDS:
            self.logged = time.monotonic()
            logger.info("%d of %d bytes, %s", self.done_bytes, self.total_bytes, self.counts())

    def counts(self) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        return f"{self.documents:,} documents, {self.tokens:,} tokens, {self.tokens / seconds:,.0f} tokens/s"


@contextlib.contextmanager
def show_progress(total_bytes: int) -> Iterator[ProgressTally]:
    """A Tally on display while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressTally(total_bytes, bar=None)
        return
    columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[counts]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        tally = ProgressTally(total_bytes, bar)
        bar.add_task("", total=total_bytes, counts=tally.counts())
        yield tally
