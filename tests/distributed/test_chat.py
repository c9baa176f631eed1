"""Real ranks on chat data: shares of unequal supervision on two ranks, every cut, and a resume train the same model."""

from dataclasses import replace

import pytest

from nld_train.config import RunConfig
from tests.chat_files import on_conversations
from tests.distributed.ranks import figures, on, small_run, train_together, with_train

pytestmark = [pytest.mark.megatron, pytest.mark.long]

LAYOUTS: dict[str, dict[str, int | bool]] = {
    "data2": {},
    "tensor2": {"tensor": 2},
    "tensor2_sequence": {"tensor": 2, "sequence": True},
    "pipeline2": {"pipeline": 2},
    "pipeline2_chunks2": {"pipeline": 2, "virtual_pipeline": 2},
    "context2": {"context": 2},
    "data2_recompute_full": {"recompute": "full"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """All runs of this file, trained on one rank, then on two."""
    folder = tmp_path_factory.mktemp("chat")

    def run(name: str, ranks: int = 2, **cut: int | bool) -> RunConfig:
        plain = small_run(name, folder, alpha=0.3, init=None if name == "base" else "base", parallel=on(ranks, **cut))
        return on_conversations(plain, folder)

    whole = run("resumed", ranks=1)
    half = replace(whole, name="half", optimizer=replace(whole.optimizer, decay_iterations=0))
    alone = [run("base", ranks=1), run("one", ranks=1), with_train(half, iterations=2), whole]
    together = [run(name, **cut) for name, cut in LAYOUTS.items()]
    train_together(alone, folder)
    train_together(together, folder)
    return {each.name: each for each in [*alone, *together]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_does_not_change_training(trained: dict[str, RunConfig], layout: str) -> None:
    """Under data 2 each rank has its own number of supervised tokens: one count must divide both ranks' gradients."""
    one, cut = figures(trained["one"]), figures(trained[layout])
    assert len(one) == len(cut) == 4
    for expected, got in zip(one, cut, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def test_validation_does_not_depend_on_the_layout_either(trained: dict[str, RunConfig]) -> None:
    one, cut = figures(trained["one"], "validation"), figures(trained["data2"], "validation")
    assert len(one) == len(cut) == 2
    for expected, got in zip(one, cut, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def test_resuming_continues_bit_for_bit(trained: dict[str, RunConfig]) -> None:
    """Steps 3 and 4 after a restart at step 2 have the very losses of the undisturbed run."""
    undisturbed, resumed = figures(trained["one"]), figures(trained["resumed"])
    assert len(resumed) == 4, "2 steps before the restart, 2 after it"
    assert resumed == undisturbed
