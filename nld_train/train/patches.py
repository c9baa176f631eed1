"""Mends to the pinned libraries, needed with and without a GPU. Each has its reason, and a test that fails as soon as
the library no longer needs it (tests/train/test_patches.py)."""

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.core.optimizer.optimizer import ChainedOptimizer


@functools.cache
def apply_patches() -> None:
    """Apply every mend; before training is set up; the second call does nothing."""
    skip_compiling_prebuilt_helpers()


def leave_wandb_out() -> None:
    """For runs without W&B: Megatron's timers import it whoever runs, which takes 4 to 6 s. None in its place makes
    that import fail as if it were not installed, and Megatron goes on without it."""
    assert "megatron" not in sys.modules, "Megatron has bound its names already"
    sys.modules["wandb"] = None  # type: ignore[assignment]


def watch_gradient_norm(optimizer: "ChainedOptimizer", watch: Callable[[float | None], None]) -> None:
    """Megatron's step has no event between the global gradient norm and the update of the weights: `watch` is called
    there, with the norm, on every rank."""
    compute = optimizer.get_grad_norm

    def watched() -> float | None:
        norm = compute()
        watch(norm)
        return norm

    optimizer.get_grad_norm = watched


def skip_compiling_prebuilt_helpers() -> None:
    """megatron-core's wheel ships its dataset helper prebuilt, without the Makefile that `compile_helpers` runs: the
    call would end the process. It is skipped where the prebuilt helper imports."""
    import megatron.bridge.training.initialize as initialize
    from megatron.core.datasets import helpers_cpp

    assert helpers_cpp.build_sample_idx_int32, "megatron-core's dataset helper is there, but not the one expected"
    initialize.compile_helpers = lambda: None
