"""A run on many GPUs by arithmetic: seconds of a step, what checkpoints and failures cost, dollars.

Every rate that is assumed is a constant here, in `plan.flops` (peak and MFU) or in `plan.network`, with its source. The
runs are those that train the whole model in bf16; a step is one optimizer step of the global batch.
"""

import math
from dataclasses import dataclass

from nld_train.config import RunConfig
from nld_train.objectives.choose import objective_of
from nld_train.plan.flops import H100_BF16, MFU, PASSES, SECONDS_PER_DAY, run_days, run_flops
from nld_train.plan.memory import checkpoint_size
from nld_train.plan.network import Traffic, network_traffic
from nld_train.plan.parameters import rank_parameters
from nld_train.plan.row_counts import micro_batches
from nld_train.plan.vision_plan import stage_parameters, vision_parameters

FILE_SYSTEM = 10e9  # bytes/s that all ranks together write: assumed; ask your own what it does
# 419 unexpected interruptions in 54 days on 16,384 H100s ["The Llama 3 Herd of Models", arXiv 2407.21783, sec. 3.3.4].
GPU_HOURS_PER_FAILURE = 16_384 * 54 * 24 / 419
RESTART = 900.0  # seconds from a failure to the first step behind it: assumed; queue, node check, start, checkpoint
PRICE = 2.5  # dollars for an hour of one H100: assumed
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class ScalePlan:
    """What a run takes on as many GPUs as it is planned for. Shares are of the time that the steps take."""

    step: float  # seconds
    traffic: list[Traffic]  # of one GPU in a step
    exposed: float  # seconds of a step in which the network works and nothing hides it
    save: float  # seconds that writing a checkpoint takes
    saving_share: float
    failures: float  # a day
    lost_share: float
    best_interval: float  # steps between checkpoints
    days: float  # saving and failures included
    gpu_hours: float
    dollars: float


def scale_plan(run: RunConfig) -> ScalePlan:
    """All of it. Wall-clock days are run_days x (1 + share of saving + share lost)."""
    step, traffic = step_seconds(run), network_traffic(run)
    saving_share, lost_share = checkpoint_share(run), lost_to_failures(run)
    days = run_days(run) * (1 + saving_share + lost_share)
    gpu_hours = days * 24 * run.parallel.world_size
    return ScalePlan(
        step=step,
        traffic=traffic,
        exposed=exposed_seconds(run, traffic),
        save=save_seconds(run),
        saving_share=saving_share,
        failures=failures_per_day(run),
        lost_share=lost_share,
        best_interval=best_interval(run),
        days=days,
        gpu_hours=gpu_hours,
        dollars=gpu_hours * PRICE,
    )


def step_seconds(run: RunConfig) -> float:
    """FLOPs of a step / (GPUs x MFU x peak): `run_days` shared out over the iterations."""
    return run_days(run) * SECONDS_PER_DAY / run.train.iterations


def exposed_seconds(run: RunConfig, traffic: list[Traffic]) -> float:
    """Seconds of a step in which a GPU waits for the network.

    Gradients are reduced while the last micro-batch runs its backward pass, and weights gathered while the first runs
    its forward (train/bridge_config.py), both at MFU: what takes longer than that is exposed. So is, at any rate, the
    part of the embedding and of a vision tower, whose gradients come last and whose weights are needed first. The other
    purposes are exposed whole, although Transformer Engine can run four of the ten collectives of a layer beside
    products of the backward.
    """
    micro_batch, (_, first) = step_seconds(run) / micro_batches(run), stage_parameters(run, 0)
    forward = micro_batch / PASSES
    room = {"gradients": micro_batch - forward, "weights": forward}
    late = (rank_parameters(run.model, run.parallel, 0).embedding + vision_parameters(run).trained) / first
    return sum(
        max(late * each.seconds, each.seconds - room[each.purpose]) if each.purpose in room else each.seconds
        for each in traffic
    )


def reachable_mfu(run: RunConfig, exposed: float) -> float:
    """The MFU of a GPU that computes at its peak and waits for `exposed` alone. A run is above it only where more is
    hidden than `exposed_seconds` takes to be."""
    computing = run_flops(run) / run.train.iterations / (run.parallel.world_size * H100_BF16)
    return computing / (computing + exposed)


def pipeline_bubble(run: RunConfig) -> float:
    """(P - 1) / (V x micro-batches): what a pipeline waits while it fills and drains, as a share of its work."""
    cut = run.parallel
    return (cut.pipeline - 1) / (cut.virtual_pipeline * micro_batches(run))


def save_seconds(run: RunConfig) -> float:
    """Bytes of a checkpoint / FILE_SYSTEM. That saving first gathers the moments in host memory is left out."""
    return checkpoint_size(run).total / FILE_SYSTEM


def checkpoint_share(run: RunConfig) -> float:
    """Seconds of a save over the seconds of checkpoint.interval steps; 0 where it is written beside the training, and
    then the copy to host memory is left out."""
    if run.checkpoint.asynchronous:
        return 0.0
    return save_seconds(run) / (run.checkpoint.interval * step_seconds(run))


def failures_per_day(run: RunConfig) -> float:
    """GPUs x 24 / GPU_HOURS_PER_FAILURE."""
    return run.parallel.world_size * 24 / GPU_HOURS_PER_FAILURE


def failure_seconds(run: RunConfig) -> float:
    """What one failure costs: the steps since the last checkpoint, half an interval on average, and RESTART."""
    return run.checkpoint.interval * step_seconds(run) / 2 + RESTART


def lost_to_failures(run: RunConfig) -> float:
    """Failures a day x seconds of one / seconds of a day. To first order: none fails while it repeats steps."""
    return failures_per_day(run) * failure_seconds(run) / SECONDS_PER_DAY


def best_interval(run: RunConfig) -> float:
    """Steps between checkpoints at which saving and repeated steps together cost least, for a save that stops the run:
    sqrt(2 x save x time between failures) seconds [Young 1974, "A first order approximation to the optimum checkpoint
    interval"]."""
    between = SECONDS_PER_DAY / failures_per_day(run)
    return math.sqrt(2 * save_seconds(run) * between) / step_seconds(run)


def scale_lines(run: RunConfig) -> list[tuple[str, str]]:
    """The plan as labelled lines; none for runs that it does not hold for: fp32, samplers, and adapters."""
    if run.train.precision == "fp32" or run.sampler is not None or objective_of(run).adapter is not None:
        return []
    plan = scale_plan(run)
    step = f"{plan.step:.3g} s at {MFU:.0%} MFU"
    if run.parallel.pipeline > 1:
        step += f"; filling and draining the pipeline adds {pipeline_bubble(run):.1%} of its work, not in it"
    exposed = f"{plan.exposed:.3g} s of a step is not hidden behind computing: MFU below "
    sent = [(each.purpose, traffic_text(each)) for each in plan.traffic]
    return [
        ("a step", step),
        *[(f"  {purpose}", text) for purpose, text in sent],
        ("  exposed", f"{exposed}{reachable_mfu(run, plan.exposed):.0%}"),
        ("saving", saving_text(run, plan)),
        ("failures", failure_text(run, plan)),
        ("", f"least is lost at checkpoint.interval={plan.best_interval:.0f} (here {run.checkpoint.interval})"),
        ("cost", f"{plan.days:.3g} days, {plan.gpu_hours:,.0f} GPU hours, {plan.dollars:,.0f} dollars at {PRICE:g}"),
    ]


def traffic_text(traffic: Traffic) -> str:
    """Bytes and the least seconds of one purpose."""
    return f"sends {traffic.sent / 1e9:.3g} GB a GPU: {traffic.seconds:.3g} s at {traffic.rate / 1e9:g} GB/s"


def saving_text(run: RunConfig, plan: ScalePlan) -> str:
    """How long a checkpoint takes, and its share."""
    share = "beside the training" if run.checkpoint.asynchronous else f"{plan.saving_share:.2%} of the time"
    return f"{plan.save:.3g} s at {FILE_SYSTEM / 1e9:g} GB/s, every {run.checkpoint.interval:,} steps: {share}"


def failure_text(run: RunConfig, plan: ScalePlan) -> str:
    """How often a node fails, and what is lost."""
    often = f"{plan.failures:.2g} a day (one in {GPU_HOURS_PER_FAILURE:,.0f} GPU hours)"
    return f"{often}, {failure_seconds(run) / 60:.3g} minutes each: {plan.lost_share:.2%} of the time"
