"""Every recipe in the package: loads, plans, fits, and holds the published numbers."""

import importlib
from dataclasses import replace

import pytest

from nld_train.config import DrafterConfig
from nld_train.errors import UserError
from nld_train.plan.dry_run import dry_run_text
from nld_train.plan.memory import worst_stage
from nld_train.plan.row_counts import micro_batches, run_tokens
from nld_train.recipe import load_recipe, recipe_names

STAGES = ["stage1_ar", "stage2_joint", "sft"]
TABLES = {stage: importlib.import_module(f"recipes.nld_{stage}").SIZES for stage in (*STAGES, "drafter")}
LARGE = [f"nld_{size}" for size in TABLES["stage1_ar"]]
PAIRS = ["tiny", *LARGE]
COUNTS = {1: "one micro-batch", 2: "two micro-batches", 4: "four micro-batches", 8: "eight micro-batches"}


def test_every_size_has_a_recipe_of_every_stage() -> None:
    found = set(recipe_names()) - {"tiny_vlm", *(f"{size}_vlm_sft" for size in LARGE)}
    assert found == {f"{size}_{stage}" for size in PAIRS for stage in (*TABLES, "sampler")}
    assert len(found) == len(recipe_names()) - 1 - len(LARGE)
    assert {"nld_3b", "nld_8b", "nld_14b"} <= set(LARGE)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_plans_and_fits(name) -> None:
    run = load_recipe(name)
    assert run.name == name
    assert name in dry_run_text(run)
    assert worst_stage(run).fits


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize(
    ("stage", "billions", "iterations", "alpha"),
    [("stage1_ar", 1000, 476_837, 0.0), ("stage2_joint", 300, 143_051, 0.3)],
)
def test_the_large_recipes_hold_the_published_numbers(size, stage, billions, iterations, alpha) -> None:
    run = load_recipe(f"{size}_{stage}")
    assert (run.train.tokens, run.train.iterations) == (billions * 10**9, iterations)
    assert run_tokens(run) == pytest.approx(billions * 1e9, rel=1e-5)
    assert (run.data.sequence_length, run.train.global_batch) == (4096, 512)
    assert (run.diffusion.alpha, run.diffusion.block_size, run.diffusion.mask_token_id) == (alpha, 32, 100)
    optimizer = run.optimizer
    assert (optimizer.lr, optimizer.min_lr, optimizer.weight_decay) == (1e-5, 3e-6, 0.1)
    assert (optimizer.beta1, optimizer.beta2, optimizer.clip_grad, optimizer.eps) == (0.9, 0.95, 1.0, 1e-8)
    assert run.train.precision == "bf16"


@pytest.mark.parametrize("size", LARGE)
def test_the_sft_recipes_hold_the_published_numbers(size) -> None:
    run = load_recipe(f"{size}_sft")
    assert run.train.tokens == 45 * 10**9
    assert run_tokens(run) == pytest.approx(45e9, rel=1e-4)
    assert (run.train.iterations, run.train.global_batch, run.data.sequence_length) == (10_729, 256, 16_384)
    assert (run.diffusion.alpha, run.diffusion.block_size, run.diffusion.mask_token_id) == (0.3, 32, 100)
    assert (run.optimizer.lr, run.optimizer.min_lr, run.optimizer.weight_decay) == (2.5e-6, 2.5e-7, 0.1)
    assert run.optimizer.decay_iterations > 0


@pytest.mark.parametrize("size", PAIRS)
def test_sft_starts_from_stage_2_on_conversations_kept_apart(size) -> None:
    before, sft = load_recipe(f"{size}_stage2_joint"), load_recipe(f"{size}_sft")
    assert sft.init == before.output != sft.output
    assert sft.model == before.model
    assert sft.data.chat and sft.diffusion.document_mask
    assert sft.data.tokenizer == before.data.tokenizer


def test_conversations_that_see_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="set diffusion.document_mask=True"):
        load_recipe("tiny_sft", ["diffusion.document_mask=false"])


@pytest.mark.parametrize("size", LARGE)
def test_the_large_layouts_use_256_gpus_and_keep_tensor_parallelism_inside_a_node(size) -> None:
    for stage in STAGES:
        cut = load_recipe(f"{size}_{stage}").parallel
        assert cut.world_size == 256
        assert 8 % cut.tensor == 0
        assert cut.sequence == (cut.tensor > 1)


@pytest.mark.parametrize(("stage", "size"), [(stage, size) for stage, table in TABLES.items() for size in table])
def test_a_layouts_reason_gives_the_figures_of_its_plan(stage, size) -> None:
    run, reason = load_recipe(f"nld_{size}_{stage}"), " ".join(TABLES[stage][size].reason.split())
    assert f"{worst_stage(run).total / 1e9:.1f} GB" in reason
    assert f"A step is {COUNTS[micro_batches(run)]} on each of {run.parallel.data} data ranks." in reason


def test_our_warm_up_and_decay_are_the_shares_that_the_recipes_say() -> None:
    joint, sft = load_recipe("nld_8b_stage2_joint"), load_recipe("nld_8b_sft")
    assert joint.optimizer.decay_tokens == (10**12 + 300 * 10**9) // 10
    assert (joint.optimizer.decay_iterations, sft.optimizer.decay_iterations) == (61_989, 1073)
    assert (sft.optimizer.warmup_tokens, sft.optimizer.decay_tokens) == (
        sft.train.tokens // 100,
        sft.train.tokens // 10,
    )
    assert (joint.optimizer.warmup_iterations, sft.optimizer.warmup_iterations) == (500, 107)


@pytest.mark.parametrize("size", PAIRS)
def test_stage_2_continues_stage_1(size) -> None:
    first, second = load_recipe(f"{size}_stage1_ar"), load_recipe(f"{size}_stage2_joint")
    assert second.init == first.output != second.output
    assert second.model == first.model
    ended = first.train.iterations * first.train.global_batch
    assert second.data == replace(first.data, skip_rows=ended), "its rows are the next ones"
    assert not first.diffusion.dual and second.diffusion.dual


@pytest.mark.parametrize("size", PAIRS)
def test_one_schedule_runs_over_both_stages_with_all_of_its_decay_in_stage_2(size) -> None:
    first, second = (load_recipe(f"{size}_{stage}").optimizer for stage in ("stage1_ar", "stage2_joint"))
    assert (first.lr, first.min_lr) == (second.lr, second.min_lr)
    assert first.decay_iterations == 0
    assert second.warmup_iterations < first.warmup_iterations, "weights are carried over, the optimizer is not"
    assert second.decay_iterations > 0


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", ["tiny_stage1_ar", "tiny_stage2_joint", "tiny_sft"])
def test_the_tiny_recipes_run_on_one_and_two_ranks(name, ranks) -> None:
    assert load_recipe(name, [f"parallel.world_size={ranks}"]).parallel.data == ranks


@pytest.mark.parametrize("size", PAIRS)
def test_drafters_hold_the_published_numbers_and_start_from_the_model_they_draft_for(size) -> None:
    run = load_recipe(f"{size}_drafter")
    base = load_recipe("tiny_stage2_joint" if size == "tiny" else f"{size}_sft")
    assert (run.init, run.model) == (base.output, base.model)
    assert run.drafter == DrafterConfig(rank=128, alpha=512, dropout=0, tau=3, top_k=200, sampled_share=0.9)
    if size != "tiny":
        assert run.diffusion.block_size == 32


@pytest.mark.parametrize("cut", ["tensor", "pipeline"])
def test_the_tiny_model_can_be_cut_in_two(cut) -> None:
    assert load_recipe("tiny_stage2_joint", [f"parallel.{cut}=2"]).parallel.data == 1
