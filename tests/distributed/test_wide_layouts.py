"""Layouts beyond two, on 4 and 8 gloo ranks: pipelines with middle stages, interleaved; tensor 4; context 4; data 8.

Sixteen small layers, so that eight stages of two chunks hold one each, and as many micro-batches as stages.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.config import RunConfig
from tests.distributed.alike import assert_same_curve, assert_same_parameters
from tests.distributed.ranks import figures, on, small_run, train_together, with_train

pytestmark = [pytest.mark.megatron, pytest.mark.long]

STEPS = 4
STAGES = {"ar": (0.0, False), "joint": (0.3, False), "packed": (0.3, True)}  # alpha, documents kept apart
BOTH, DUAL, ALL = ("ar", "packed"), ("packed",), ("ar", "joint", "packed")
# Ranks, how they are cut (data parallelism is what is left), and the stages that are tried.
LAYOUTS: dict[str, tuple[int, dict[str, int | bool | str], tuple[str, ...]]] = {
    "pipeline4": (4, {"pipeline": 4}, DUAL),
    "pipeline4_chunks2": (4, {"pipeline": 4, "virtual_pipeline": 2}, BOTH),
    "pipeline4_chunks4": (4, {"pipeline": 4, "virtual_pipeline": 4}, DUAL),
    "tensor4": (4, {"tensor": 4}, DUAL),
    "tensor4_sequence": (4, {"tensor": 4, "sequence": True}, BOTH),
    "context4": (4, {"context": 4}, ALL),
    "data8": (8, {}, BOTH),
    "pipeline8": (8, {"pipeline": 8}, DUAL),
    "pipeline8_chunks2": (8, {"pipeline": 8, "virtual_pipeline": 2}, BOTH),
    "pipeline4_chunks2_data2": (8, {"pipeline": 4, "virtual_pipeline": 2}, DUAL),
    "pipeline4_chunks2_tensor2_sequence": (
        8,
        {"pipeline": 4, "virtual_pipeline": 2, "tensor": 2, "sequence": True},
        DUAL,
    ),
    "pipeline4_context2": (8, {"pipeline": 4, "context": 2}, ("joint",)),
    "tensor4_sequence_context2": (8, {"tensor": 4, "sequence": True, "context": 2}, ("joint", "packed")),
    "context4_tensor2_sequence": (8, {"context": 4, "tensor": 2, "sequence": True}, ("joint", "packed")),
    "pipeline2_tensor2_context2": (8, {"pipeline": 2, "tensor": 2, "context": 2}, ("joint", "packed")),
}
CASES = [(layout, stage) for layout, (_, _, stages) in LAYOUTS.items() for stage in stages]


def run_of(folder: Path, name: str, stage: str, ranks: int, cut: dict[str, int | bool | str]) -> RunConfig:
    """Four steps of eight micro-batches from the weights of "start", saved once."""
    alpha, document_mask = STAGES[stage]
    init = None if name == "start" else "start"
    run = small_run(name, folder, alpha=alpha, init=init, parallel=on(1))
    run = with_train(run, iterations=STEPS, eval_batches=0, micro_batch=1)
    return replace(
        run,
        parallel=on(ranks, **cut),
        model=replace(run.model, layers=16, hidden=32, ffn=64, heads=4, kv_heads=4, head_dim=8),
        diffusion=replace(run.diffusion, document_mask=document_mask),
        # Of Adam's eps: see tests/distributed/test_matrix.py.
        optimizer=replace(run.optimizer, eps=1e-6),
        checkpoint=replace(run.checkpoint, interval=STEPS),
    )


@pytest.fixture(scope="module")
def runs(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """Everything trained, by name: on one rank, then on 8 and on 4."""
    folder = tmp_path_factory.mktemp("wide")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    ones = [run_of(folder, f"one_{stage}", stage, 1, {}) for stage in STAGES]
    made = [run_of(folder, f"{layout}_{stage}", stage, *LAYOUTS[layout][:2]) for layout, stage in CASES]
    train_together([run_of(folder, "start", "ar", 1, {}), *ones], folder)
    for ranks in (8, 4):
        train_together([run for run in made if run.parallel.world_size == ranks], folder)
    return {run.name: run for run in [*ones, *made]}


@pytest.mark.parametrize(("layout", "stage"), CASES)
def test_every_step_and_the_weights_are_those_of_one_rank(runs: dict[str, RunConfig], layout: str, stage: str) -> None:
    one, cut = runs[f"one_{stage}"], runs[f"{layout}_{stage}"]
    assert_same_curve(one, cut)
    assert_same_parameters(one, cut)


def test_the_stages_are_different_trainings(runs: dict[str, RunConfig]) -> None:
    """Or the comparisons would compare nothing."""
    assert len({tuple(figures(runs[f"one_{stage}"])[0]) for stage in STAGES}) == len(STAGES)
