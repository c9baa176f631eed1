"""A second stage that takes over the optimizer of the first is one run, cut in two."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.config import RunConfig
from tests.distributed.ranks import figures, logged, on, small_run, train_together, with_train

pytestmark = pytest.mark.megatron
LR = 1e-3


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """Eight steps at once; and four, and four more from their weights, with and without their optimizer."""
    folder = tmp_path_factory.mktemp("carried")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)

    def run(name: str, steps: int, first: int, **changes: object) -> RunConfig:
        made = with_train(small_run(name, folder, alpha=0.0, init=None, parallel=on(1)), iterations=steps)
        constant = replace(made.optimizer, decay_iterations=0)
        return replace(
            made, optimizer=constant, data=replace(made.data, skip_rows=first * made.train.global_batch), **changes
        )

    one = run("one", 4, 0)
    runs = [
        run("whole", 8, 0),
        one,
        run("carried", 4, 4, init=one.output, init_optimizer=True),
        run("weights", 4, 4, init=one.output),
        run("other", 4, 4, init=one.output, init_optimizer=True),
    ]
    runs[-1] = replace(runs[-1], optimizer=replace(runs[-1].optimizer, beta1=0.5, decay_iterations=2))
    longer = replace(with_train(runs[2], iterations=6), optimizer=runs[2].optimizer)
    train_together(runs, folder)
    shutil.copytree(runs[2].output, folder / "resumed")
    resumed = replace(longer, name="resumed", output=str(folder / "resumed"))
    train_together([resumed], folder)
    return {each.name: each for each in [*runs, resumed]}


def test_the_second_stage_goes_on_as_if_nothing_had_been_cut(trained: dict[str, RunConfig]) -> None:
    whole, carried = figures(trained["whole"]), figures(trained["carried"])
    assert carried == whole[4:]
    assert [entry["step"] for entry in logged(trained["carried"])] == [1, 2, 3, 4], "its own steps begin at 1"
    assert figures(trained["carried"], "validation")[0] == figures(trained["one"], "validation")[-1]


def test_weights_alone_go_another_way(trained: dict[str, RunConfig]) -> None:
    carried, weights = figures(trained["carried"]), figures(trained["weights"])
    assert weights[0] == carried[0] and weights[1] != carried[1]


def test_the_second_stage_has_a_schedule_of_its_own(trained: dict[str, RunConfig]) -> None:
    carried, other = trained["carried"], trained["other"]
    expected = [LR, LR, LR, 1e-4 + (LR - 1e-4) * (1 - 0.5**0.5)]
    assert [entry["learning rate"] for entry in logged(other)] == pytest.approx(expected)
    assert figures(other)[0] == figures(carried)[0] and figures(other)[1] != figures(carried)[1], "its beta1 holds"


def test_a_resume_of_the_second_stage_is_a_plain_resume(trained: dict[str, RunConfig]) -> None:
    assert [entry["step"] for entry in logged(trained["resumed"])] == [1, 2, 3, 4, 5, 6]
