"""Ranks on nodes."""

import pytest

from nld_train import recipe
from nld_train.errors import UserError
from nld_train.launch.placement import Placement, place_on_nodes


def test_the_fewest_nodes_are_taken() -> None:
    run = recipe.load_recipe("nld_8b_stage2_joint")
    assert place_on_nodes(run, None, gpus_per_node=8) == Placement(nodes=32, ranks=8)
    assert place_on_nodes(run, 64, gpus_per_node=8) == Placement(nodes=64, ranks=4)


def test_cpu_nodes_are_counted_by_hand() -> None:
    run = recipe.load_recipe("tiny_stage1_ar")
    assert place_on_nodes(run, 2, gpus_per_node=0) == Placement(nodes=2, ranks=1)
    with pytest.raises(UserError, match="--nodes N"):
        place_on_nodes(run, None, gpus_per_node=0)


@pytest.mark.parametrize(
    ("nodes", "gpus", "said"),
    [
        (31, 8, "256 ranks cannot be shared out evenly.*give --nodes 32"),
        (16, 8, "16 ranks on a node of 8 GPUs.*give --nodes 32"),
        (256, 8, "1 ranks on a node, parallel.tensor=2.*give --nodes 128"),
        (0, 8, "give --nodes 32"),
        (4, 1, "change parallel.world_size or parallel.tensor"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest_that_does(nodes: int, gpus: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        place_on_nodes(recipe.load_recipe("nld_8b_stage2_joint"), nodes, gpus)
