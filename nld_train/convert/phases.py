"""What a conversion is doing, and how long each part of it took."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def timed_phase(what: str) -> Iterator[None]:
    """Say what begins, and when it has ended well how many seconds it took."""
    logger.info("%s ...", what)
    start = time.perf_counter()
    yield
    logger.info("%s: %.1f s", what, time.perf_counter() - start)
