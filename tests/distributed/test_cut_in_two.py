"""A run cut in two is one run: a resume that asks for more steps, beyond an epoch, and a second stage that takes over
the optimizer of the first."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.config import RunConfig
from tests.chat_files import write_text_file
from tests.distributed.ranks import figures, logged, on, small_run, train_together, with_train

pytestmark = pytest.mark.megatron
LR = 1e-3


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """Eight steps at once, of 8 rows where an epoch has 34; and four, and four more as a resume, or from their weights,
    with and without their optimizer."""
    folder = tmp_path_factory.mktemp("carried")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    few = write_text_file(folder / "few", 40, 70)

    def run(name: str, steps: int, first: int, **changes: object) -> RunConfig:
        made = with_train(small_run(name, folder, alpha=0.0, init=None, parallel=on(1)), iterations=steps)
        constant = replace(made.optimizer, decay_iterations=0)
        data = replace(made.data, blend=(few,), skip_rows=first * made.train.global_batch)
        return replace(made, optimizer=constant, data=data, **changes)

    one = run("one", 4, 0)
    runs = [
        run("whole", 8, 0),
        one,
        run("carried", 4, 4, init=one.output, init_optimizer=True),
        run("weights", 4, 4, init=one.output),
        run("other", 4, 4, init=one.output, init_optimizer=True),
    ]
    runs[-1] = replace(runs[-1], optimizer=replace(runs[-1].optimizer, beta1=0.5, decay_iterations=2))
    train_together(runs, folder)
    longer = [("longer", runs[1], 8), ("resumed", runs[2], 6)]
    for name, before, _ in longer:
        shutil.copytree(before.output, folder / name)
    again = [
        replace(with_train(before, iterations=steps), name=name, output=str(folder / name))
        for name, before, steps in longer
    ]
    train_together(again, folder)
    return {each.name: each for each in [*runs, *again]}


def test_more_steps_than_planned_and_than_an_epoch_has(
    trained: dict[str, RunConfig],
) -> None:
    assert figures(trained["longer"]) == figures(trained["whole"])


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
