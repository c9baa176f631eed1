"""What a drafter's run costs, reckoned by hand for the published 8B and for the tiny model."""

import pytest

from nld_train.config import RunConfig
from nld_train.objectives.choose import objective_of
from nld_train.plan.dry_run import dry_run_text
from nld_train.plan.flops import row_flops
from nld_train.plan.memory import checkpoint_size, stage_memory, stored_activation_bytes
from nld_train.plan.parameters import adapter_parameters, model_parameters
from nld_train.recipe import load_recipe

RUN = load_recipe("nld_8b_drafter")
ADAPTER = 34 * 128 * (4096 + 4096)


def most_head_rows(run: RunConfig) -> int:
    return objective_of(run).most_head_rows()


def test_the_adapter_is_two_matrices_a_layer() -> None:
    assert adapter_parameters(RUN.model, RUN.drafter) == ADAPTER == 35_651_584


def test_gradients_and_optimizer_are_those_of_the_adapter_alone() -> None:
    """On tensor 2 with 16 data ranks: half of the adapter, fp32 gradients, 12 bytes of state over 16 ranks."""
    memory, frozen = stage_memory(RUN, 0), model_parameters(RUN.model).total
    assert memory.gradients == ADAPTER // 2 * 4
    assert memory.optimizer == ADAPTER // 2 * 12 // 16
    assert memory.weights == pytest.approx(2 * (frozen + ADAPTER) / 2, rel=1e-3)  # norms are whole on both ranks


def test_a_checkpoint_holds_the_adapter_alone() -> None:
    size = checkpoint_size(RUN)
    assert (size.weights, size.optimizer) == (2 * ADAPTER, 12 * ADAPTER)


def test_the_head_is_asked_for_the_drafted_places_of_the_blocks_that_count() -> None:
    assert most_head_rows(RUN) == objective_of(RUN).expected_head_rows() == 4096 // 32 * 31
    few = load_recipe("nld_8b_drafter", ["drafter.blocks_per_row=10"])
    assert most_head_rows(few) == 10 * 31
    assert most_head_rows(load_recipe("nld_8b_drafter", ["drafter.blocks_per_row=1000"])) == most_head_rows(RUN)
    assert row_flops(few).head == pytest.approx(row_flops(RUN).head * 10 / 128)
    assert stage_memory(few, 0).head < stage_memory(RUN, 0).head


def test_the_dry_run_says_what_is_trained() -> None:
    assert "35,651,584: LoRA of rank 128 on o_proj; the rest is frozen" in dry_run_text(RUN)
    assert "trained " not in dry_run_text(load_recipe("tiny_stage1_ar"))


def test_a_frozen_layer_keeps_no_inputs_of_its_maps_and_the_adapter_its_own() -> None:
    """Tensor 2 with sequence parallelism: two streams; query, key, value, rotated ones and output; gate and up; A's."""
    own = 2 * 4096 / 2 + (128 * (3 * 32 + 3 * 8) + 2 * 14_336 + 32 * 128) / 2
    statistics = 4 * 32 / 2  # fp32, one a head
    assert stored_activation_bytes(RUN, recompute_attention=False) == 8192 * (2 * own + statistics)
