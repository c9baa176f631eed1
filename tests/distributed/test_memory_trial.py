"""The trial of the largest batch leaves no trace: runs with and without it end with the same bytes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.config import DrafterConfig, RunConfig
from tests.distributed.ranks import figures, logged, on, small_run, train_together, with_train

pytestmark = pytest.mark.megatron

ALONE = ("joint", "drafter", "resumed")
LAYOUTS: dict[str, dict[str, int | bool | str]] = {
    "data2": {},
    "pipeline2_chunks2": {"pipeline": 2, "virtual_pipeline": 2},
    "context2": {"context": 2},
}


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], RunConfig]:
    """Every case with and without the trial, trained on one rank, then on two."""
    folder = tmp_path_factory.mktemp("trials")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)

    def run(name: str, trial: str, ranks: int = 1, **cut: int | bool | str) -> RunConfig:
        made = small_run(f"{name}_{trial}", folder, alpha=0.3, init="base", parallel=on(ranks, **cut))
        made = with_train(made, memory_trial=trial, eval_batches=0)
        made = replace(made, diffusion=replace(made.diffusion, document_mask=True))
        if name == "drafter":  # its dropout draws from the generators that the trial draws from
            made = replace(made, drafter=DrafterConfig(rank=8, alpha=32, top_k=20, dropout=0.2))
        return made

    base = with_train(small_run("base", folder, alpha=0.3, init=None, parallel=on(1)), eval_batches=0)
    alone = {(name, trial): run(name, trial) for name in ALONE for trial in ("always", "never")}
    halves = [with_train(replace(alone["resumed", trial]), iterations=2) for trial in ("always", "never")]
    halves = [replace(half, optimizer=replace(half.optimizer, decay_iterations=0)) for half in halves]
    together = {
        (name, trial): run(name, trial, 2, **LAYOUTS[name]) for name in LAYOUTS for trial in ("always", "never")
    }
    halves = [replace(half, name=f"{half.name}_half") for half in halves]
    train_together([base, *halves, *alone.values()], folder)
    train_together([*together.values()], folder)
    return alone | together


@pytest.mark.parametrize("case", [*ALONE, *LAYOUTS])
def test_training_is_the_same_bit_for_bit(trained: dict[tuple[str, str], RunConfig], case: str) -> None:
    tried, plain = trained[case, "always"], trained[case, "never"]
    assert [entry["step"] for entry in logged(tried)] == [1, 2, 3, 4]
    assert figures(tried) == figures(plain)
    # Weights, moments, the place in the data and the states of all random number generators, byte for byte.
    files = [Path(run.output, "checkpoints/iter_0000004") for run in (tried, plain)]
    names = [sorted(path.name for path in folder.glob("*.distcp")) for folder in files]
    assert names[0] == names[1] != []
    for name in names[0]:
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes()
