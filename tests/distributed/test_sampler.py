"""The sampler's training on real ranks: layouts, resume, its evaluations, and where it ends by them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.config import DiffusionConfig, RunConfig
from nld_train.objective_sections import SamplerConfig
from nld_train.run_folder.early_end import early_end_step
from nld_train.run_folder.frozen import holds_no_model
from tests.distributed.ranks import logged, on, small_run, train_together, with_train
from tests.sampler_folder import write_collection

pytestmark = pytest.mark.megatron

FIGURES = ("sampler loss", "judged rightly", "predictions right", "gradient norm", "AUC", "AUC of confidence")


def sampler_run(name: str, folder: Path, ranks: int = 1, **settings: object) -> RunConfig:
    made = small_run(name, folder, alpha=0.0, init=None, parallel=on(ranks))
    made = replace(made, data=replace(made.data, blend=(f"{folder}/trajectories",), split="75,25,0"))
    made = replace(made, diffusion=DiffusionConfig(alpha=0))
    shape = SamplerConfig(layers=2, width=16, ffn=24, heads=2, **{"patience": 0, "dropout": 0.0} | settings)
    return replace(made, sampler=shape)


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """All runs of this file, trained on one rank, then on two."""
    folder = tmp_path_factory.mktemp("samplers")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    write_collection(folder / "trajectories", prompts=16)
    whole = sampler_run("resumed", folder, dropout=0.1)
    half = with_train(replace(whole, name="half"), iterations=2)
    half = replace(half, optimizer=replace(half.optimizer, decay_iterations=0))
    # A learning rate that ruins the network: after its first evaluation the AUC gets no better.
    early = with_train(sampler_run("early", folder), iterations=40, eval_interval=2)
    early = replace(
        early, optimizer=replace(early.optimizer, lr=1.0, min_lr=0.1), sampler=replace(early.sampler, patience=2)
    )
    alone = [sampler_run("one", folder), sampler_run("dropped", folder, dropout=0.1), half, whole, early]
    together = [sampler_run("two", folder, ranks=2)]
    train_together(alone, folder)
    train_together(together, folder)
    return {each.name: each for each in [*alone, *together]}


def figures(run: RunConfig, kind: str = "train") -> list[dict[str, float]]:
    return [{name: entry[name] for name in FIGURES if name in entry} for entry in logged(run, kind)]


def test_two_ranks_train_as_one(trained: dict[str, RunConfig]) -> None:
    for kind, count in (("train", 4), ("validation", 2)):
        one, two = figures(trained["one"], kind), figures(trained["two"], kind)
        assert len(one) == len(two) == count
        for expected, got in zip(one, two, strict=True):
            assert got == pytest.approx(expected, rel=1e-5)


def test_a_resumed_run_continues_bit_for_bit(trained: dict[str, RunConfig]) -> None:
    assert figures(trained["resumed"])[2:] == figures(trained["dropped"])[2:]
    assert logged(trained["resumed"], "validation")[-1] == logged(trained["dropped"], "validation")[-1]


def test_evaluations_rank_and_training_does_not(trained: dict[str, RunConfig]) -> None:
    first, last = logged(trained["one"], "validation")
    assert last["sampler loss"] < first["sampler loss"] and last["AUC"] != first["AUC"]
    assert first["AUC of confidence"] == last["AUC of confidence"]  # the rows are the same, and the model is not there
    positions = sum(value for name, value in first.items() if name.endswith("count"))
    assert positions == sum(value for name, value in last.items() if name.endswith("count")) > 0
    assert not {"AUC", "band 1 count"} & logged(trained["one"])[0].keys()


def test_a_run_ends_where_its_evaluations_get_no_better(trained: dict[str, RunConfig]) -> None:
    """Two evaluations behind the best one; the step is saved, and the record says which was the best."""
    output = Path(trained["early"].output)
    evaluated = {entry["step"]: entry["AUC"] for entry in logged(trained["early"], "validation")}
    ended = early_end_step(output)
    assert ended == max(evaluated) < 40 and (output / "checkpoints" / f"iter_{ended:07}" / "manifest.json").is_file()
    best = json.loads((output / "early_end.json").read_text())["best step"]
    assert evaluated[best] == max(auc for step, auc in evaluated.items() if step) and ended == best + 4
    assert max(entry["step"] for entry in logged(trained["early"])) == ended


def test_its_folder_holds_no_model(trained: dict[str, RunConfig]) -> None:
    assert holds_no_model(Path(trained["one"].output)) == "sampler"
