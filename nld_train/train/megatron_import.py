"""Megatron's import: 20 CPU seconds and a million objects, whatever a run does."""

import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager

from nld_train.train import cpu_runtime, patches


@functools.cache
def load_megatron() -> None:
    """Import everything that a run imports, and start none of it: threads would not survive a fork. The second call
    does nothing, and neither does the first of a process that was forked from one that had called it."""
    with imports_without_collections():
        cpu_runtime.install_cpu_runtime()
        patches.apply_patches()
        # Megatron binds names when it is imported: only now may it be.

        import nld_train.train.bridge_config
        import nld_train.train.callbacks.progress  # noqa: F401


@contextmanager
def imports_without_collections() -> Iterator[None]:
    """Import libraries in the block: what they make stays until the process ends, and no collection looks at it.

    While they are imported, collections found nothing in a fifth of the time. Behind the import, each collection of all
    objects took 0.9 s more; Megatron-Bridge asks for three in the shortest run, and for more with every evaluation.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
