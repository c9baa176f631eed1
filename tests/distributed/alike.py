"""Two runs that must be the same training: their curves, and their weights at the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nld_train.config import RunConfig
from nld_train.convert.torch_dist import StoredWeights
from nld_train.convert.weight_table import WeightMapping
from nld_train.run_folder.checkpoints import newest_complete_step
from nld_train.run_folder.paths import step_folder
from tests.distributed.ranks import figures


def parameters(run: RunConfig) -> Iterator[tuple[str, Tensor]]:
    """The weights of a run's last checkpoint, whole tensors under names that no layout changes."""
    last = run.train.iterations
    assert newest_complete_step(Path(run.output)) == last
    stored = StoredWeights(step_folder(Path(run.output), last))
    for name, shape in sorted(stored.shapes.items()):
        yield name, stored.read(WeightMapping(name, None, shape, ()), torch.float32)


def assert_same_curve(expected: RunConfig, got: RunConfig) -> None:
    """Losses and gradient norms of all steps, within 1e-5."""
    one, other = figures(expected), figures(got)
    assert len(one) == len(other) == expected.train.iterations
    for step, (wanted, found) in enumerate(zip(one, other, strict=True), 1):
        assert found == pytest.approx(wanted, rel=1e-5), f"step {step}"


def assert_same_parameters(expected: RunConfig, got: RunConfig) -> None:
    """The weights at the end, each within 1e-5 of its norm."""
    for (name, wanted), (same, found) in zip(parameters(expected), parameters(got), strict=True):
        assert name == same
        apart = ((found - wanted).norm() / wanted.norm()).item()
        assert apart < 1e-5, f"{name} is {apart:.1e} of its norm away"
