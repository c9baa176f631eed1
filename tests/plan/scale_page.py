"""The tables of docs/scale.md, by the functions that the dry run calls: `.venv/bin/python -m tests.plan.scale_page`
prints them, test_scale_page.py asserts that they stand on the page."""

from dataclasses import dataclass

from nld_train.config import (
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from nld_train.plan.flops import H100_BF16, MFU, flops_per_token
from nld_train.plan.network import NETWORK, NVLINK
from nld_train.plan.row_counts import micro_batches
from nld_train.plan.scale import ScalePlan, reachable_mfu, scale_plan
from nld_train.recipe import load_recipe

RECIPES = ("nld_8b_stage2_joint", "nld_14b_stage2_joint")
SIZES = (8, 32, 64, 128, 256, 512, 1024)
BACKWARD_SHARE = 2 / 3  # of a micro-batch
A100_BF16 = 312e12  # FLOP/s of an A100, dense


@dataclass(frozen=True)
class PublishedRun:
    """A published pretraining run: its shape, and the GPU hours of its model card."""

    name: str
    model: ModelConfig
    row: int  # tokens
    tokens: float
    gpu_hours: float
    peak: float  # FLOP/s of one GPU


def llama(layers: int, hidden: int, ffn: int, heads: int, **others: int) -> ModelConfig:
    """The shape of a Llama; heads of 128."""
    return ModelConfig(layers=layers, hidden=hidden, ffn=ffn, heads=heads, **others)


PUBLISHED = (
    PublishedRun(
        "Llama 2 7B", llama(32, 4096, 11_008, 32, kv_heads=32, vocab_size=32_000), 4096, 2e12, 184_320, A100_BF16
    ),
    PublishedRun("Llama 2 70B", llama(80, 8192, 28_672, 64, vocab_size=32_000), 4096, 2e12, 1_720_320, A100_BF16),
    PublishedRun("Llama 3.1 8B", llama(32, 4096, 14_336, 32, vocab_size=128_256), 8192, 15e12, 1.46e6, H100_BF16),
    PublishedRun("Llama 3.1 70B", llama(80, 8192, 28_672, 64, vocab_size=128_256), 8192, 15e12, 7.0e6, H100_BF16),
    PublishedRun(
        "Llama 3.1 405B", llama(126, 16_384, 53_248, 128, vocab_size=128_256), 8192, 15.6e12, 30.84e6, H100_BF16
    ),
)


def run_of(published: PublishedRun) -> RunConfig:
    """The published run as an AR run of ours, so that `flops_per_token` counts it."""
    return RunConfig(
        name=published.name,
        output="out/published",
        model=published.model,
        diffusion=DiffusionConfig(alpha=0.0),
        data=DataConfig(blend=("data/a",), tokenizer="data/tokenizer", sequence_length=published.row),
        train=TrainConfig(iterations=1, global_batch=1, micro_batch=1, precision="bf16"),
        optimizer=OptimizerConfig(lr=1e-5, min_lr=1e-6, warmup_iterations=0, decay_iterations=0),
        parallel=ParallelConfig(world_size=1),
    )


def implied_mfu(published: PublishedRun) -> float:
    """FLOPs of all tokens / (GPU hours x peak)."""
    done = flops_per_token(run_of(published)) * published.tokens
    return done / (published.gpu_hours * 3600 * published.peak)


def published_table() -> str:
    """The MFU that published GPU hours imply."""
    rows = []
    for each in PUBLISHED:
        per_token = flops_per_token(run_of(each))
        gpu = "A100" if each.peak == A100_BF16 else "H100"
        rows.append(
            f"| {each.name} | {each.tokens / 1e12:g}T | {per_token:.3g} | {each.gpu_hours / 1e6:.3g}M {gpu} | "
            f"{implied_mfu(each):.1%} | {implied_mfu(each) / MFU:.2f} |"
        )
    return table_text("| run | tokens | FLOPs a token | GPU hours | MFU implied | of the 40 % assumed |", rows)


def planned(recipe: str, gpus: int) -> tuple[RunConfig, ScalePlan]:
    """A recipe on so many GPUs."""
    run = load_recipe(recipe, [f"parallel.world_size={gpus}"])
    return run, scale_plan(run)


def time_table(recipe: str) -> str:
    """Time and money by number of GPUs."""
    rows = []
    for gpus in SIZES:
        run, plan = planned(recipe, gpus)
        interval = run.checkpoint.interval
        rows.append(
            f"| {gpus:,} | {micro_batches(run)} | {plan.step:.3g} | {plan.days:.3g} | {plan.saving_share:.2%} | "
            f"{plan.failures:.3f} | {plan.lost_share:.2%} | {plan.best_interval:,.0f} | {at_best(run, plan):.2%} / "
            f"{plan.saving_share + plan.lost_share:.2%} | {plan.gpu_hours:,.0f} | {plan.dollars:,.0f} |"
        )
    head = (
        f"| GPUs | micro-batches | step, s | days | saving | failures a day | lost | best interval, steps | "
        f"both at the best / at {interval:,} | GPU hours | dollars |"
    )
    return table_text(head, rows)


def at_best(run: RunConfig, plan: ScalePlan) -> float:
    """Saving and failures together at the best interval."""
    steps = max(1, round(plan.best_interval))
    best = scale_plan(load_recipe(run.name, [f"parallel.world_size={run.parallel.world_size}", *interval_words(steps)]))
    return best.saving_share + best.lost_share


def interval_words(steps: int) -> list[str]:
    """The override of the checkpoint interval."""
    return [f"checkpoint.interval={steps}"]


def network_table(recipe: str) -> str:
    """What a GPU sends in a step, by number of GPUs: GB, and seconds at least."""
    rows = []
    for gpus in SIZES:
        run, plan = planned(recipe, gpus)
        by_name = {each.purpose: each for each in plan.traffic}
        sent = {name: f"{each.sent / 1e9:,.1f} GB, {each.seconds:.3g} s" for name, each in by_name.items()}
        gradients = by_name["gradients"]
        backward = plan.step / micro_batches(run) * BACKWARD_SHARE
        busy = sum(each.seconds for each in plan.traffic) / plan.step
        share = [gradients.seconds / backward, gradients.sent / NETWORK / backward]
        hidden = " / ".join(f"{each:.0%}" for each in (share[:1] if gradients.rate == NVLINK else share))
        rows.append(
            f"| {gpus:,} | {sent['gradients']} | {sent['weights']} | {gradients.rate / 1e9:g} | "
            f"{hidden} | {sent['tensor']} | {busy:.0%} | {reachable_mfu(run, plan.exposed):.0%} |"
        )
    return table_text(
        "| GPUs | gradients | weights | at GB/s | share of the backward that hides gradients / at 50 GB/s | "
        "tensor, at 450 GB/s | network busy | MFU below |",
        rows,
    )


def table_text(head: str, rows: list[str]) -> str:
    """A table in Markdown."""
    rule = "|" + "---|" * (head.count("|") - 1)
    return "\n".join([head, rule, *rows])


def all_tables() -> list[str]:
    """Every table of the page, in its order."""
    return [table for recipe in RECIPES for table in (time_table(recipe), network_table(recipe))] + [published_table()]


if __name__ == "__main__":
    print("\n\n".join(all_tables()))
