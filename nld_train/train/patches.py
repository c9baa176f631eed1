"""Patches of the pinned libraries that are needed with and without a GPU. Each has its reason, and a test that fails as
soon as the library no longer needs it (tests/train/test_patches.py)."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.core.optimizer.optimizer import ChainedOptimizer


@functools.cache
def apply_patches() -> None:
    """Apply every patch. Call this before training is set up; the second call does nothing."""
    skip_compiling_prebuilt_helpers()


def watch_gradient_norm(optimizer: "ChainedOptimizer", watch: Callable[[float | None], None]) -> None:
    """Call `watch` with the global gradient norm, on every rank, before the weights are updated: Megatron's step has no
    event of its own there."""
    compute = optimizer.get_grad_norm

    def watched() -> float | None:
        norm = compute()
        watch(norm)
        return norm

    optimizer.get_grad_norm = watched


def skip_compiling_prebuilt_helpers() -> None:
    """Skip `compile_helpers` where the prebuilt dataset helper imports: megatron-core's wheel ships it without the
    Makefile that the call runs, and the call would end the process."""
    import megatron.bridge.training.initialize as initialize
    from megatron.core.datasets import helpers_cpp

    assert helpers_cpp.build_sample_idx_int32, "megatron-core's dataset helper is there, but not the one expected"
    initialize.compile_helpers = lambda: None
