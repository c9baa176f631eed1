from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nld_train.plan import flops
from nld_train.plan.row_counts import row_positions, run_visible_pairs
from nld_train.recipe import load_recipe


class Products(TorchDispatchMode):
    """Counts the operations of the matrix products that run under it."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            left, right = args
            self.total += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return func(*args, **(kwargs or {}))


def counted(module: torch.nn.Module, rows: int, width: int) -> int:
    """FLOPs of the products in a forward and backward pass of `rows` positions."""
    x = torch.randn(1, rows, width, requires_grad=True)
    with Products() as products:
        module(x).sum().backward()
    return products.total


def test_the_linear_maps_cost_what_their_products_cost(small_run, layer) -> None:
    run = small_run()
    layer.attend = lambda projected: projected[..., : run.model.heads * run.model.head_dim]
    whole = run.model.layers * counted(layer, row_positions(run), run.model.hidden)
    assert flops.row_flops(run).layers == whole


def test_the_head_costs_what_its_products_cost_for_its_rows(small_run) -> None:
    run = small_run(alpha=0.0)
    head = torch.nn.Linear(run.model.hidden, run.model.vocab_size, bias=False)
    assert flops.row_flops(run).head == counted(head, run.data.sequence_length, run.model.hidden)


def test_attention_costs_two_products_of_head_dim_for_each_visible_pair_and_head(small_run) -> None:
    run = small_run()
    by_pair = 0
    for _ in range(run.model.layers * run.model.heads * run_visible_pairs(run)):
        by_pair += 3 * 2 * (2 * run.model.head_dim)  # passes, products, multiply-adds
    assert flops.row_flops(run).attention == by_pair


def test_the_joint_stage_doubles_the_layers_and_not_the_head(small_run) -> None:
    joint, ar = (flops.row_flops(small_run(alpha=alpha)) for alpha in (0.3, 0.0))
    assert joint.layers == 2 * ar.layers
    assert joint.head == pytest.approx((1 + 1.001 / 2) * ar.head)


def test_the_layout_and_the_batch_change_the_time_and_not_the_operations(small_run) -> None:
    one, cut = small_run(), small_run(tensor=2, pipeline=2, recompute="full")
    assert flops.run_flops(one) == flops.run_flops(cut)
    assert flops.run_days(small_run(world_size=16)) == pytest.approx(flops.run_days(one) / 2)


def test_days_of_the_8b_model_are_near_six_parameters_a_token() -> None:
    """Six FLOPs a parameter and token, the usual estimate, leaves attention out and has the embedding as a product."""
    run = load_recipe("nld_8b_stage1_ar")
    assert flops.flops_per_token(run) == pytest.approx(6 * 8.49e9, rel=0.05)
    assert flops.run_days(run) == pytest.approx(6 * 8.49e9 * 1e12 / (256 * 989e12 * 0.4) / 86_400, rel=0.05)


def test_fp8_makes_the_linear_maps_twice_as_fast_and_changes_no_count() -> None:
    plain, fast = (load_recipe("nld_8b_stage2_joint", [f"train.fp8={recipe}"]) for recipe in ("none", "blockwise"))
    assert flops.run_flops(fast) == flops.run_flops(plain)
    row = flops.row_flops(plain)
    assert flops.run_days(fast) / flops.run_days(plain) == pytest.approx(1 - row.layers / 2 / row.total)
