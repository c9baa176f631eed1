import math

import pytest

from nld_train.errors import UserError
from nld_train.plan import network, scale
from nld_train.plan.dry_run import dry_run_text
from nld_train.plan.flops import H100_BF16, MFU, run_flops
from nld_train.plan.memory import checkpoint_size
from nld_train.recipe import load_recipe


def test_a_step_takes_its_flops_at_the_mfu() -> None:
    run = load_recipe("nld_8b_stage2_joint")
    assert scale.step_seconds(run) == pytest.approx(run_flops(run) / run.train.iterations / (256 * MFU * H100_BF16))


def test_rings_that_leave_a_node_share_its_ports() -> None:
    assert network.group_rate(8, 1) == network.group_rate(4, 2) == network.NVLINK
    assert network.group_rate(8, 2) == 4 * network.NETWORK  # a data group of tensor 2 over two nodes
    assert network.group_rate(128, 8) == network.group_rate(2, 512) == network.NETWORK
    assert network.group_rate(64, 1) == 8 * network.NETWORK


def test_a_saving_and_a_failure_cost_what_they_should() -> None:
    run = load_recipe("nld_8b_stage2_joint", ["parallel.world_size=1024"])
    step, save = scale.step_seconds(run), checkpoint_size(run).total / 10e9
    assert scale.checkpoint_share(run) == pytest.approx(save / (1000 * step))
    days_between = 16_384 * 54 / 419 / 1024
    assert scale.failures_per_day(run) == pytest.approx(1 / days_between)
    assert scale.lost_to_failures(run) == pytest.approx((500 * step + 900) / (days_between * 86_400))
    beside = load_recipe("nld_8b_stage2_joint", ["parallel.world_size=1024", "checkpoint.asynchronous=true"])
    assert scale.checkpoint_share(beside) == 0 and "beside the training" in dry_run_text(beside)


def test_no_interval_costs_less_than_the_best_one() -> None:
    def cost(interval: int) -> float:
        run = load_recipe("nld_8b_stage2_joint", [f"checkpoint.interval={interval}"])
        return scale.checkpoint_share(run) + scale.lost_to_failures(run)

    best = scale.best_interval(load_recipe("nld_8b_stage2_joint"))
    assert cost(math.floor(best * 0.9)) > cost(round(best)) < cost(math.ceil(best * 1.1))


def test_the_days_hold_saving_and_failures_and_the_dollars_follow() -> None:
    plan = scale.scale_plan(load_recipe("nld_14b_stage2_joint"))
    steps = plan.step * load_recipe("nld_14b_stage2_joint").train.iterations / 86_400
    assert plan.days == pytest.approx(steps * (1 + plan.saving_share + plan.lost_share))
    assert plan.dollars == pytest.approx(plan.days * 24 * 256 * 2.5)


def test_what_the_backward_pass_hides_is_not_exposed_but_for_the_embedding() -> None:
    run = load_recipe("nld_8b_stage2_joint")
    gradients = network.Traffic("gradients", 10e9, 100e9)  # 0.1 s; a micro-batch's backward takes 0.35 s
    embedding = 131_072 * 4096 / 2
    stage = 34 * (4096 * 128 * 80 + 3 * 4096 * 14_336) / 2 + 34 * 2 * 4096 + 4096 + 2 * embedding
    assert scale.exposed_seconds(run, [gradients]) == pytest.approx(0.1 * embedding / stage)
    slow = network.Traffic("gradients", 100e9, 100e9)
    backward = scale.step_seconds(run) / 4 * 2 / 3
    assert scale.exposed_seconds(run, [slow]) == pytest.approx(1 - backward)
    tensor = network.Traffic("tensor", 10e9, 100e9)
    assert scale.exposed_seconds(run, [tensor]) == pytest.approx(0.1)


def test_a_step_sends_no_more_gradients_for_more_micro_batches_but_more_streams() -> None:
    few, many = (
        {each.purpose: each.sent for each in network.network_traffic(load_recipe("nld_8b_stage2_joint", [batch]))}
        for batch in ("train.global_batch=512", "train.global_batch=1024")
    )
    assert many["gradients"] == few["gradients"] and many["tensor"] == 2 * few["tensor"]


def test_the_dry_run_shows_the_block_for_whole_models_in_bf16_alone() -> None:
    text = dry_run_text(load_recipe("nld_8b_stage2_joint"))
    block = text.partition("at scale")[2].splitlines()
    assert len(block) <= 12
    for words in ("2.09 s at 40% MFU", "gradients     sends 16.8 GB a GPU: 0.0842 s at 200 GB/s", "53,474 dollars"):
        assert words in text, words
    for other in ("nld_8b_drafter", "nld_8b_sampler", "tiny_stage2_joint"):
        assert "at scale" not in dry_run_text(load_recipe(other)), other


def test_a_pipelines_bubble_is_named() -> None:
    text = dry_run_text(load_recipe("nld_14b_stage1_ar", ["parallel.pipeline=2"]))
    assert "filling and draining the pipeline adds 12.5% of its work" in text


def test_2048_gpus_are_too_many_for_the_recipes_batches() -> None:
    for name in ("nld_8b_stage2_joint", "nld_14b_stage2_joint"):
        with pytest.raises(UserError):
            load_recipe(name, ["parallel.world_size=2048"])
