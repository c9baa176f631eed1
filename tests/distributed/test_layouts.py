"""Real ranks on real runs: the layout, the resume and the evaluation do not change the training."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.config import RunConfig
from tests.distributed.ranks import logged, on, small_run, train_together, with_train

pytestmark = pytest.mark.megatron

LAYOUTS: dict[str, dict[str, int | bool]] = {
    "data2": {},
    "tensor2": {"tensor": 2},
    "tensor2_sequence": {"tensor": 2, "sequence": True},
    "pipeline2": {"pipeline": 2},
    "pipeline2_chunks2": {"pipeline": 2, "virtual_pipeline": 2},
    "data2_recompute_full": {"recompute": "full"},
    "tensor2_recompute_selective": {"tensor": 2, "recompute": "selective"},
}


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """All runs of this file, trained in two launches: one rank, then two."""
    folder = tmp_path_factory.mktemp("layouts")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)

    def run(name: str, alpha: float, ranks: int = 2, **cut: int | bool) -> RunConfig:
        return small_run(name, folder, alpha=alpha, init="stage1", parallel=on(ranks, **cut))

    def packed(name: str, ranks: int = 2, **cut: int | bool) -> RunConfig:
        apart = run(name, 0.3, ranks, **cut)
        return replace(apart, diffusion=replace(apart.diffusion, document_mask=True))

    stage1 = small_run("stage1", folder, alpha=0.0, init=None, parallel=on(1))
    alone = [stage1, run("ar_one", 0.0, ranks=1), run("joint_one", 0.3, ranks=1), packed("packed_one", ranks=1)]
    alone.append(with_train(run("joint_splits", 0.3, ranks=1), micro_batch=4))
    alone.append(with_train(run("joint_unevaluated", 0.3, ranks=1), eval_batches=0))
    half = with_train(run("joint_resumed", 0.3, ranks=1), iterations=2)
    half = replace(half, optimizer=replace(half.optimizer, decay_iterations=0))
    whole = run("joint_resumed", 0.3, ranks=1)
    alone.append(replace(half, name="joint_half"))
    alone.append(whole)
    together = []
    for name, cut in LAYOUTS.items():
        together += [run(f"ar_{name}", 0.0, **cut), run(f"joint_{name}", 0.3, **cut), packed(f"packed_{name}", **cut)]
    train_together(alone, folder)
    train_together(together, folder)
    return {each.name: each for each in [*alone, *together]}


def losses(run: RunConfig) -> list[tuple[float, ...]]:
    """(loss, gradient norm, ...) of every step."""
    kept = ("AR loss", "diffusion loss", "total loss", "mask ratio", "gradient norm")
    return [tuple(entry[name] for name in kept if name in entry) for entry in logged(run)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", ["ar", "joint", "packed"])
def test_the_layout_does_not_change_training(trained: dict[str, RunConfig], stage: str, layout: str) -> None:
    one, cut = losses(trained[f"{stage}_one"]), losses(trained[f"{stage}_{layout}"])
    assert len(one) == len(cut) == 4
    for expected, got in zip(one, cut, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def test_documents_kept_apart_are_another_training(trained: dict[str, RunConfig]) -> None:
    assert losses(trained["packed_one"])[0] != losses(trained["joint_one"])[0]


def test_micro_batches_do_not_change_training(trained: dict[str, RunConfig]) -> None:
    for expected, got in zip(losses(trained["joint_one"]), losses(trained["joint_splits"]), strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def test_stage_2_starts_where_stage_1_ended(trained: dict[str, RunConfig]) -> None:
    last = logged(trained["stage1"], "validation")[-1]
    first = logged(trained["joint_one"], "validation")[0]
    assert (last["step"], first["step"]) == (4, 0)
    assert first["AR loss"] == pytest.approx(last["AR loss"], rel=1e-6)


def test_resuming_continues_bit_for_bit(trained: dict[str, RunConfig]) -> None:
    """Steps 3 and 4 after a restart at step 2 have the very losses of the undisturbed run."""
    undisturbed, resumed = losses(trained["joint_one"]), losses(trained["joint_resumed"])
    assert len(resumed) == 4, "2 steps before the restart, 2 after it"
    assert resumed == undisturbed


def test_evaluation_does_not_change_training(trained: dict[str, RunConfig]) -> None:
    assert logged(trained["joint_unevaluated"], "validation") == []
    assert losses(trained["joint_unevaluated"]) == losses(trained["joint_one"])


def test_every_evaluation_sees_the_same_rows_and_noise(trained: dict[str, RunConfig]) -> None:
    ratios = {entry["mask ratio"] for entry in logged(trained["joint_one"], "validation")}
    assert len(ratios) == 1


def test_training_learns(trained: dict[str, RunConfig]) -> None:
    first, *_, last = losses(trained["stage1"])
    assert last[0] < first[0] - 0.05
