"""The whole matrix: every layout, in both stages, with documents kept apart or not, is the same training as one rank.

Ten minutes of work (`make test-long`); tests/distributed/test_layouts.py is the short cut of `make test`.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from nld_train.config import RunConfig
from tests.distributed.alike import assert_same_curve, assert_same_parameters, parameters
from tests.distributed.ranks import figures, on, small_run, train_together, with_train

pytestmark = [pytest.mark.megatron, pytest.mark.long]

STEPS, HALF = 10, 5


@dataclass(frozen=True)
class Stage:
    alpha: float
    document_mask: bool


STAGES = {
    "ar": Stage(0.0, False),
    "ar_packed": Stage(0.0, True),
    "joint": Stage(0.3, False),
    "joint_packed": Stage(0.3, True),
}
# Ranks, and how they are cut; data parallelism is what is left.
LAYOUTS: dict[str, tuple[int, dict[str, int | bool | str]]] = {
    "recompute_full": (1, {"recompute": "full"}),
    "recompute_selective": (1, {"recompute": "selective"}),
    "data2": (2, {}),
    "tensor2": (2, {"tensor": 2}),
    "tensor2_sequence": (2, {"tensor": 2, "sequence": True}),
    "pipeline2": (2, {"pipeline": 2}),
    "pipeline2_chunks2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "context2": (2, {"context": 2}),
    "context2_recompute_full": (2, {"context": 2, "recompute": "full"}),
    "data4": (4, {}),
    "tensor2_pipeline2": (4, {"tensor": 2, "pipeline": 2}),
    "context2_tensor2": (4, {"context": 2, "tensor": 2}),
    "context2_tensor2_sequence_selective": (
        4,
        {"context": 2, "tensor": 2, "sequence": True, "recompute": "selective"},
    ),
    "context2_pipeline2": (4, {"context": 2, "pipeline": 2}),
    "data2_context2": (4, {"context": 2}),
    "context4": (4, {"context": 4}),
}
# Where a run of tensor 2 x pipeline 2 ranks is continued: the layout of the second half.
MOVED: dict[str, tuple[int, dict[str, int | bool | str]]] = {
    "to_data2": (2, {}),
    "to_context2": (2, {"context": 2}),
    "to_one": (1, {}),
}


@dataclass(frozen=True)
class Runs:
    folder: Path

    def run(self, name: str, stage: str, ranks: int, cut: dict[str, int | bool | str]) -> RunConfig:
        """A run of ten steps from the weights of "start", saved once, at its end."""
        kind = STAGES[stage]
        run = small_run(name, self.folder, alpha=kind.alpha, init="start", parallel=on(ranks, **cut))
        run = with_train(run, iterations=STEPS, eval_batches=0)
        return replace(
            run,
            diffusion=replace(run.diffusion, document_mask=kind.document_mask),
            # Adam divides by |gradient| + eps. With an eps of 1e-8 one weight whose gradient is about 0 moved by 2 % of
            # the learning rate for rounding alone, and took its whole matrix 2e-5 of its norm away.
            optimizer=replace(run.optimizer, decay_iterations=HALF, eps=1e-6),
            checkpoint=replace(run.checkpoint, interval=STEPS),
        )

    def one(self, stage: str) -> RunConfig:
        return self.run(f"{stage}_one", stage, 1, {})

    def cut(self, stage: str, layout: str) -> RunConfig:
        return self.run(f"{stage}_{layout}", stage, *LAYOUTS[layout])

    def half(self) -> RunConfig:
        """The first half of a run, with the learning rates of the whole one."""
        half = with_train(self.run("half", "joint_packed", *LAYOUTS["tensor2_pipeline2"]), iterations=HALF)
        return replace(half, optimizer=replace(half.optimizer, decay_iterations=0))

    def moved(self, name: str) -> RunConfig:
        return self.run(name, "joint_packed", *MOVED[name])

    def ordered(self, name: str, ranks: int) -> RunConfig:
        """Two micro-batches a step: on one rank and on two, their gradients are added up in the same order."""
        run = with_train(self.run(name, "joint_packed", ranks, {}), global_batch=2, micro_batch=1)
        return replace(run, optimizer=replace(run.optimizer, clip_grad=1e6))


@pytest.fixture(scope="module")
def runs(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Everything trained: on every number of ranks in turn, and last on one rank that continues."""
    runs = Runs(tmp_path_factory.mktemp("matrix"))
    shutil.copytree(prepared, runs.folder, dirs_exist_ok=True)
    start = small_run("start", runs.folder, alpha=0.0, init=None, parallel=on(1))
    ones = [runs.one(stage) for stage in STAGES]
    train_together([start, *ones, *of_ranks(runs, 1), runs.ordered("ordered_one", 1)], runs.folder)
    train_together([runs.half(), *of_ranks(runs, 4)], runs.folder)
    for name in MOVED:
        shutil.copytree(runs.half().output, runs.moved(name).output)
    moved = {ranks: [runs.moved(name) for name in MOVED if MOVED[name][0] == ranks] for ranks in (1, 2)}
    train_together([*of_ranks(runs, 2), runs.ordered("ordered_data2", 2), *moved[2]], runs.folder)
    train_together(moved[1], runs.folder)
    return runs


def of_ranks(runs: Runs, ranks: int) -> list[RunConfig]:
    return [runs.cut(stage, layout) for layout in LAYOUTS if LAYOUTS[layout][0] == ranks for stage in STAGES]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_step_is_that_of_one_rank(runs: Runs, layout: str, stage: str) -> None:
    assert_same_curve(runs.one(stage), runs.cut(stage, layout))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_end_as_those_of_one_rank(runs: Runs, layout: str, stage: str) -> None:
    assert_same_parameters(runs.one(stage), runs.cut(stage, layout))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("layout", ["recompute_full", "recompute_selective"])
def test_recomputation_changes_no_bit(runs: Runs, layout: str, stage: str) -> None:
    assert figures(runs.one(stage)) == figures(runs.cut(stage, layout))


def test_two_data_ranks_change_no_bit_where_sums_are_ordered(runs: Runs) -> None:
    """Losses and weights; the gradient's norm is added up rank by rank, and it is not used where nothing is clipped."""
    one, two = runs.ordered("ordered_one", 1), runs.ordered("ordered_data2", 2)
    assert [each[:-1] for each in figures(one)] == [each[:-1] for each in figures(two)]
    for (name, wanted), (_, found) in zip(parameters(one), parameters(two), strict=True):
        assert torch.equal(wanted, found), name


@pytest.mark.parametrize("name", MOVED)
def test_a_run_may_be_continued_under_another_layout(runs: Runs, name: str) -> None:
    """Five steps on tensor 2 x pipeline 2, five on other ranks."""
    assert_same_curve(runs.one("joint_packed"), runs.moved(name))
    assert_same_parameters(runs.one("joint_packed"), runs.moved(name))


def test_the_stages_are_different_trainings(runs: Runs) -> None:
    """Or the comparisons would compare nothing."""
    curves = [tuple(figures(runs.one(stage))[0][:1]) for stage in STAGES]
    assert len({*curves}) >= 2
    assert figures(runs.one("joint"))[0] != figures(runs.one("joint_packed"))[0]
