"""The model with a vision tower on real ranks: no layout changes its losses, its gradients or its checkpoints."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nld_train.convert.torch_dist import StoredWeights
from nld_train.convert.weight_table import WeightMapping
from tests.distributed import vision_ranks
from tests.distributed.vision_ranks import FROZEN, LAYOUTS

pytestmark = pytest.mark.megatron

TOWER, PROJECTOR = "vision_tower.", "multi_modal_projector."


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one process of the program has filled, with every layout."""
    folder = tmp_path_factory.mktemp("vision")
    subprocess.run(
        [sys.executable, "-m", vision_ranks.__name__, str(folder)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=400,
    )
    return folder


def stored(folder: Path) -> dict[str, Tensor]:
    weights = StoredWeights(folder)
    return {
        name: weights.read(WeightMapping(name, None, shape, ()), torch.float32)
        for name, shape in weights.shapes.items()
    }


def said(folder: Path, name: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}.*.json"))]


def losses(folder: Path, name: str) -> dict[str, list[float]]:
    """(sum, count) of each figure, added up over the ranks that have one."""
    summed: Counter[tuple[str, int]] = Counter()
    for rank in said(folder, name):
        for figure, pair in rank["losses"].items():
            summed.update({(figure, place): value for place, value in enumerate(pair)})
    return {figure: [summed[figure, 0], summed[figure, 1]] for figure, _ in summed}


@pytest.mark.parametrize("layout", [*(name for name in LAYOUTS if name != "one"), FROZEN])
def test_the_layout_changes_no_loss(stepped: Path, layout: str) -> None:
    expected = losses(stepped, "one")
    assert set(expected) == {"AR loss", "diffusion loss", "total loss", "mask ratio"}
    for figure, pair in losses(stepped, layout).items():
        assert pair == pytest.approx(expected[figure], rel=1e-5), figure


@pytest.mark.parametrize("layout", [*(name for name in LAYOUTS if name != "one"), FROZEN])
def test_the_layout_changes_no_gradient(stepped: Path, layout: str) -> None:
    expected, got = stored(stepped / "one"), stored(stepped / layout)
    assert set(got) == set(expected)
    for name, slope in got.items():
        if layout == FROZEN and name.startswith(TOWER):
            continue
        assert expected[name].any(), name
        apart = ((slope - expected[name]).norm() / expected[name].norm()).item()
        assert apart < 1e-5, f"{name} is {apart:.1e} of its norm away"


def test_a_frozen_tower_is_not_trained_and_the_rest_is(stepped: Path) -> None:
    names = {name for name in stored(stepped / "one") if name.startswith(TOWER)}
    for rank in said(stepped, FROZEN):
        assert {name.removeprefix("module.") for name in rank["untrained"]} == names


def test_names_in_checkpoints_are_those_of_transformers_beside_those_of_the_text_model(stepped: Path) -> None:
    from nld_train.model.vision_tower import build_tower
    from tests.model.images import VISION

    tower, projector = build_tower(VISION, 64, 1e-5, recompute=False, dtype=torch.float32)
    shapes = {
        prefix + name: value.shape
        for prefix, module in ((TOWER, tower), (PROJECTOR, projector))
        for name, value in module.state_dict().items()
    }
    found = StoredWeights(stepped / "one").shapes
    assert {name: shape for name, shape in found.items() if name.startswith((TOWER, PROJECTOR))} == shapes
    rest = {name for name in found if name not in shapes}
    assert {name.split(".")[0] for name in rest} == {"embedding", "decoder", "output_layer"}
