"""The drafter's training on real ranks: layouts, resume, and what its checkpoints hold."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.config import DrafterConfig, RunConfig
from nld_train.convert.adapter import open_adapter
from nld_train.run_folder.frozen import holds_no_model
from tests.distributed.ranks import logged, on, small_run, train_together, with_train

pytestmark = pytest.mark.megatron

LAYOUTS: dict[str, dict[str, int | bool | str]] = {
    "data2": {},
    "tensor2": {"tensor": 2},
    "tensor2_sequence": {"tensor": 2, "sequence": True, "recompute": "full"},
}
FIGURES = (
    *("drafter loss", "hybrid loss", "argmax loss", "overlap", "expected length", "accepted length"),
    "gradient norm",
)


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """All runs of this file, trained on one rank, then on two."""
    folder = tmp_path_factory.mktemp("drafters")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)

    def drafter(name: str, ranks: int = 1, **cut: int | bool | str) -> RunConfig:
        made = small_run(name, folder, alpha=0.3, init="base", parallel=on(ranks, **cut))
        made = replace(made, diffusion=replace(made.diffusion, document_mask=True))
        return replace(made, drafter=DrafterConfig(rank=8, alpha=32, top_k=20, blocks_per_row=5))

    base = small_run("base", folder, alpha=0.3, init=None, parallel=on(1))
    base = with_train(base, eval_batches=0)
    whole = drafter("resumed")
    half = with_train(replace(whole, name="half"), iterations=2)
    half = replace(half, optimizer=replace(half.optimizer, decay_iterations=0))
    learning = with_train(drafter("learning"), iterations=24, eval_interval=24, eval_batches=4)
    learning = replace(learning, optimizer=replace(learning.optimizer, lr=1e-2, decay_iterations=0))
    alone = [base, drafter("one"), half, whole, learning, of_another_loss(drafter("one, another loss"))]
    together = [with_train(drafter(name, 2, **cut), eval_batches=0) for name, cut in LAYOUTS.items()]
    together += [of_another_loss(drafter("tensor2, another loss", 2, tensor=2))]
    train_together(alone, folder)
    train_together(together, folder)
    return {each.name: each for each in [*alone, *together]}


def of_another_loss(run: RunConfig) -> RunConfig:
    assert run.drafter is not None
    run = with_train(run, iterations=2, eval_batches=0)
    run = replace(run, optimizer=replace(run.optimizer, decay_iterations=0))
    return replace(run, drafter=replace(run.drafter, loss="accepted_length"))


def figures(run: RunConfig, kind: str = "train") -> list[tuple[float, ...]]:
    return [tuple(entry[name] for name in FIGURES if name in entry) for entry in logged(run, kind)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_does_not_change_training(trained: dict[str, RunConfig], layout: str) -> None:
    one, cut = figures(trained["one"]), figures(trained[layout])
    assert len(one) == len(cut) == 4 and len(one[0]) == len(FIGURES)
    for expected, got in zip(one, cut, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def test_the_layout_does_not_change_training_by_another_loss(trained: dict[str, RunConfig]) -> None:
    one, cut, paper = (figures(trained[name]) for name in ("one, another loss", "tensor2, another loss", "one"))
    assert len(one) == len(cut) == 2
    for expected, got in zip(one, cut, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)
    # The first step's figures but the loss and its gradient are the paper's: the weights are the same.
    assert one[0][0] != pytest.approx(paper[0][0], rel=1e-3) and one[0][1:-1] == paper[0][1:-1]


def test_a_resumed_run_continues_bit_for_bit(trained: dict[str, RunConfig]) -> None:
    assert figures(trained["resumed"])[2:] == figures(trained["one"])[2:]
    assert figures(trained["resumed"], "validation")[-1] == figures(trained["one"], "validation")[-1]


def test_training_moves_the_loss(trained: dict[str, RunConfig]) -> None:
    first, last = figures(trained["learning"], "validation")
    assert last[0] < 0.95 * first[0]  # 2.91 to 2.66 nats: the base is hardly trained, and there is little to learn


def test_evaluations_say_how_far_drafts_are_kept_and_training_does_not(trained: dict[str, RunConfig]) -> None:
    (first, *_), block = logged(trained["one"], "validation"), trained["one"].diffusion.block_size
    kept = [first[f"drafts kept up to {place}"] for place in range(1, block)]
    assert kept == sorted(kept, reverse=True) and kept[-1] >= 0 and kept[0] <= 1
    assert first["accepted length"] == pytest.approx(1 + sum(kept), rel=1e-6)
    assert not any(name.startswith("drafts kept") for name in logged(trained["one"])[0])


def test_checkpoints_hold_the_adapter_alone(trained: dict[str, RunConfig]) -> None:
    for name in ("one", "tensor2"):
        output = Path(trained[name].output)
        assert holds_no_model(output) == "drafter"
        source = open_adapter(output)
        assert len(source.weights.tensors) == 2
        assert source.base == Path(trained["base"].output)
    assert holds_no_model(Path(trained["base"].output)) is None
