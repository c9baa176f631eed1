"""A whole training step: forward, backward and optimizer, on rows of random tokens that are ready on the host."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from statistics import median

import torch

from nld_train.bench.measure import Alternative, Effort, Measurement, measure_in_turns
from nld_train.bench.outcome import (
    NOTHING,
    BenchOutcome,
    bench_environment,
    mebibytes_text,
    milliseconds_text,
    refusal_lines,
    result_figures,
    time_ratio,
)
from nld_train.bench.profile import profile_lines
from nld_train.config import RunConfig
from nld_train.dual_stream.batch import collate_rows
from nld_train.noise.corrupt import corrupt_row
from nld_train.plan import flops, memory
from nld_train.plan.row_counts import row_positions
from nld_train.recipe import replace_settings
from nld_train.types import Batch, Row

READY = 4  # micro-batches that are made before the clock starts; in training the loader's processes make them
ALL_LOGITS = 14  # bytes for each logit in an alternative that makes all of them: one bf16 copy, three fp32 ones
SHARE = 0.85  # the part of a GPU's memory that the layers may take
PEAKS = {"H100": flops.H100_BF16, "H200": flops.H100_BF16}  # dense bf16 FLOP/s; both have the same chip
HEAD = ["step", "ms (fastest to slowest)", "row tokens/s", "TFLOP/s, useful", "MFU", "time / ours", "peak MiB"]

JOINT, AR = "ours, stage 2 (joint)", "ours, stage 1 (AR)"
BRIDGE_JOINT, BRIDGE_AR = "Megatron-Bridge NemotronLabsDiffusion", "Megatron-Bridge GPT (AR)"
# What the layers of a step are made of.
MEGATRON_LAYERS, PLAIN_LAYERS = "Megatron's layers, schedule and optimizer", "plain torch layers, not Megatron's"
# Without Megatron ours is compared with this.
NAIVE = "KV heads repeated, logits of every position"
# (above, below, the aim for the ratio of their times)
WANTED = (
    (BRIDGE_JOINT, JOINT, "at least 1.5 on a GPU"),
    (AR, BRIDGE_AR, "at most 1.05"),
    (JOINT, AR, "at most 2.10"),
    (NAIVE, JOINT, "as large as can be"),
)


def bench_steps(
    run: RunConfig,
    kind: str,
    alternatives: Sequence[Alternative],
    effort: Effort,
    device: torch.device,
    profiled: bool = False,
) -> BenchOutcome:
    """Measure the steps of one run's row shape.

    kind: what the layers are made of, for the table. profiled: also show which kernels our step spends its time in.
    """
    results = measure_in_turns(alternatives, effort, device)
    peak = device_peak_flops(device)
    main = next((result for result in results if result.name == JOINT and result.seconds), None)
    rows = [_step_cells(result, run, main, peak) for result in results]
    notes = [f"{above} / {below}: {value:.2f}, wanted {aim}" for above, below, value, aim in _wanted_ratios(results)]
    known = "" if peak is None else f" MFU: of {peak / 1e12:.0f} TFLOP/s."
    notes.append(f"Useful FLOPs as `nld train --dry-run` counts them.{known} One rank: nothing is sent.")
    notes += refusal_lines(results)
    if profiled:
        notes += profile_lines(alternatives, main, device)
    return BenchOutcome(
        "step",
        _step_subject(run, kind),
        HEAD,
        rows,
        notes,
        {
            "results": result_figures(results),
            "kind": kind,
            "layers": run.model.layers,
            "peak_flops": peak,
            "planned": memory.worst_stage(run).total,
        },
        environment=bench_environment(device),
    )


def _step_subject(run: RunConfig, kind: str) -> str:
    model = run.model
    size = f"{model.layers} layers of hidden {model.hidden:,}, vocabulary {model.vocab_size:,}"
    rows = f"{run.train.micro_batch} row(s) of {run.data.sequence_length:,}"
    return f"{run.name}: {size}; {rows}, {run.train.precision}; {kind}"


def _step_cells(result: Measurement, run: RunConfig, main: Measurement | None, peak: float | None) -> list[str]:
    if not result.seconds:
        return [result.name, *[NOTHING] * (len(HEAD) - 1)]
    tokens = run.train.micro_batch * run.data.sequence_length
    return [
        result.name,
        milliseconds_text(result),
        f"{tokens / median(result.seconds):,.0f}",
        f"{result.rate / 1e12:.3g}",
        NOTHING if peak is None else f"{result.rate / peak:.1%}",
        NOTHING if main is None else f"{time_ratio(result, main):.2f}",
        mebibytes_text(result),
    ]


def _wanted_ratios(results: Sequence[Measurement]) -> list[tuple[str, str, float, str]]:
    """The ratios of WANTED of which both sides ran: (above, below, ratio, aim)."""
    ran = {result.name: result for result in results if result.seconds}
    return [
        (above, below, time_ratio(ran[above], ran[below]), aim)
        for above, below, aim in WANTED
        if above in ran and below in ran
    ]


def device_peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a GPU in PEAKS; None for any other device."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for kind, peak in PEAKS.items() if kind in name), None)


def with_one_rank(run: RunConfig) -> RunConfig:
    """The run with one micro-batch a step, on a single rank."""
    parallel = replace(run.parallel, tensor=1, pipeline=1, virtual_pipeline=1, context=1, sequence=False, world_size=1)
    return replace_settings(replace(run, parallel=parallel), {"train.global_batch": run.train.micro_batch})


def with_fitting_layers(run: RunConfig, capacity: int) -> RunConfig:
    """The run with as many of its layers as fit into `capacity` bytes, also for the alternative that needs most."""

    def at(layers: int) -> RunConfig:
        return replace(run, model=replace(run.model, layers=layers))

    logits = ALL_LOGITS * run.train.micro_batch * row_positions(run) * run.model.vocab_size
    possible = range(run.model.layers, 0, -1)
    fitting = (n for n in possible if memory.worst_stage(at(n)).total + logits <= SHARE * capacity)
    return at(next(fitting, 1))


def with_ar_objective(run: RunConfig) -> RunConfig:
    """The run as stage 1, on the same rows."""
    return replace(run, diffusion=replace(run.diffusion, alpha=0.0))


def useful_step_flops(run: RunConfig) -> float:
    """Useful FLOPs of one step of one micro-batch."""
    return run.train.micro_batch * flops.row_flops(run).total


def random_rows(run: RunConfig, number: int) -> list[Row]:
    """Micro-batch `number` of rows of random tokens [L + 1], all of them supervised."""
    length, generator = run.data.sequence_length, torch.Generator().manual_seed(number)
    tokens = torch.randint(0, run.model.vocab_size, (run.train.micro_batch, length + 1), generator=generator)
    counted = torch.ones(length + 1, dtype=torch.bool)
    return [Row(number * len(tokens) + place, text, counted) for place, text in enumerate(tokens)]


def endless_batches(run: RunConfig, device: torch.device) -> Iterator[Batch]:
    """Micro-batches on the host, in pinned memory for a GPU; READY of them come round again and again."""

    def made(number: int) -> Batch:
        rows = random_rows(run, number)
        noisy = [corrupt_row(row, run.diffusion, "train", run.train.global_batch) for row in rows]
        batch = collate_rows(noisy if run.diffusion.dual else rows, run.diffusion)
        return batch.pin_memory() if device.type == "cuda" else batch

    return cycle([made(number) for number in range(READY)])
