"""One step of a rank on fake tensors, against the plan: `benchmarks/memory.py` does all recipes."""

import pytest
import torch

from nld_train.config import RunConfig
from nld_train.recipe import load_recipe
from nld_train.rehearsal.memory_table import compare_memory, memory_markdown
from nld_train.rehearsal.storage_meter import StorageMeter

WITHIN = 0.1  # of the plan


def shorter(name: str, *overrides: str) -> RunConfig:
    """A recipe for GPUs at its full width, with four layers."""
    return load_recipe(name, ["model.layers=4", *overrides])


RUNS = [
    shorter("nld_3b_stage1_ar"),
    shorter("nld_8b_stage2_joint"),
    shorter("nld_8b_sft"),
    shorter("nld_14b_drafter"),
    shorter("nld_8b_stage2_joint", "parallel.recompute=full", "train.attention=flex"),
    shorter("nld_8b_sft", "parallel.context=2"),
    shorter("nld_8b_stage2_joint", "parallel.pipeline=2", "parallel.virtual_pipeline=2"),
]


LONG = [pytest.param(number, marks=pytest.mark.long) for number in range(len(RUNS)) if number != 1]


@pytest.mark.megatron
@pytest.mark.parametrize("number", [1, *LONG])
def test_a_simulated_step_takes_what_the_plan_says(number: int) -> None:
    (found,) = compare_memory([RUNS[number]])
    assert 1 - WITHIN < found.ratio < 1 + WITHIN, memory_markdown([found])
    for kept in ("weights", "gradients", "optimizer"):
        assert found.simulated[kept] == pytest.approx(vars(found.planned)[kept], rel=0.03), kept
    if number < 3:  # what a step keeps of its layers is planned to a few percent
        assert found.simulated["activations"] == pytest.approx(found.planned.activations, rel=0.05), found.name


def test_storages_are_counted_once_and_forgotten_when_nobody_holds_them() -> None:
    with StorageMeter("first") as meter:
        kept = torch.zeros(10)
        view = kept[:5]
        meter.category = "second"
        gone = torch.zeros(100)
        del gone
        more = kept + 1
    assert meter.live == {"first": 40, "second": 40} and meter.peak == {"first": 40, "second": 400}
    meter.move([view], "second")
    assert meter.live == {"first": 0, "second": 80}
    del kept, view, more
    assert meter.live.total() == 0
