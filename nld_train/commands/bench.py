"""`nld bench`: the command line of measurements.

Attention and LM-head loss need torch alone: `python -m nld_train.commands.bench attention` runs without the rest.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nld_train.errors import UserError, require
from nld_train.exit_status import REFUSED

if TYPE_CHECKING:
    import torch

    from nld_train.bench.measure import Effort
    from nld_train.bench.outcome import BenchOutcome

RAW = argparse.RawDescriptionHelpFormatter
DTYPES = ("bf16", "fp32")

BENCH_HELP = """\
Measure attention, LM-head loss, or a whole training step, each against its alternatives in the same run; train.

  nld bench attention                      8B heads, rows of 4,096 on a GPU; a small shape on a CPU
  nld bench attention --length 16384 --documents 24 --json attention.json
  nld bench loss                           4,096 rows, vocabulary 131,072, on a GPU
  nld bench step                           the 8B shape with as many layers as fit; on a CPU the tiny one
  nld bench step --recipe nld_3b_stage2_joint train.micro_batch=2
  nld bench check                          are outputs and gradients right on this machine?
  nld bench training                       tiny recipes by `nld train`: bf16 here beside float32 on the CPU; a resume

Alternatives take turns, so that a busy machine slows them alike; figures are medians over the rounds. One that cannot
run here says why. Ctrl-C prints what was measured until then. benchmarks/gpu.sh does all of it on a GPU.
"""
# What an option is where it is not given: (GPU, CPU).
SIZES = {
    "attention": {
        "length": (4096, 256),
        "rows": (1, 1),
        "heads": (32, 4),
        "kv_heads": (8, 2),
        "head_dim": (128, 64),
        "block_size": (32, 32),
        "documents": (1, 1),
    },
    "loss": {"rows": (4096, 512), "vocabulary": (131_072, 8192), "hidden": (4096, 64)},
}
HELP = {
    "length": "tokens in a row, L",
    "rows": "rows of a micro-batch; of the loss: positions",
    "heads": "query heads",
    "kv_heads": "key and value heads",
    "head_dim": "of every head",
    "block_size": "tokens denoised together",
    "documents": "packed in a row, starting anywhere",
    "vocabulary": "tokens",
    "hidden": "hidden size",
}


def add_bench_parser(commands: argparse._SubParsersAction) -> None:
    bench = commands.add_parser(
        "bench", help="measure attention, loss or a step", description=BENCH_HELP, formatter_class=RAW
    )
    _add_bench_parts(bench)


def _add_bench_parts(bench: argparse.ArgumentParser) -> None:
    parts = bench.add_subparsers(title="parts", required=True, metavar="PART")
    attention = parts.add_parser("attention", help="forward and backward of attention alone")
    loss = parts.add_parser("loss", help="forward and backward of the LM-head loss alone")
    step = parts.add_parser("step", help="one training step, whole")
    check = parts.add_parser("check", help="outputs and gradients of every kernel against float64, on random draws")
    training = parts.add_parser("training", help="a real short training: its curve, and whether it resumes bit for bit")
    for name, part in (("attention", attention), ("loss", loss)):
        for option, (gpu, cpu) in SIZES[name].items():
            words = f"{HELP[option]} (default: {gpu:,} on a GPU, {cpu:,} on a CPU)"
            part.add_argument(f"--{option.replace('_', '-')}", type=_positive_number, metavar="N", help=words)
    for part in (attention, loss, check):
        part.add_argument("--dtype", choices=DTYPES, help="default: bf16 on a GPU, fp32 on a CPU")
    for part in (attention, loss, step):
        part.add_argument(
            "--rounds", type=_positive_number, default=10, metavar="N", help="at most (default: %(default)s)"
        )
    check.add_argument(
        "--draws", type=_positive_number, metavar="N", help="of each kernel and shape (default: 200; CPU: 3)"
    )
    step.add_argument("--recipe", metavar="NAME", help="default: nld_8b_stage2_joint; on a CPU tiny_stage2_joint")
    step.add_argument("--plain", action="store_true", help="plain torch layers, also where Megatron is installed")
    step.add_argument("override", nargs="*", metavar="key=value", help="settings to change; model.layers: all that fit")
    training.add_argument("--steps", type=_positive_number, metavar="N", help="of stage 2 (default: 200; CPU: 40)")
    training.add_argument("override", nargs="*", metavar="key=value", help="settings to change in both recipes")
    runs = {attention: _run_attention, loss: _run_loss, step: _run_step, check: _run_check, training: _run_training}
    for part, run in runs.items():
        part.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: a GPU if any")
        part.add_argument(
            "--seconds", type=_positive_number, default=240, metavar="S", help="at most (default: %(default)s)"
        )
        part.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
        part.set_defaults(run=run)
    for part in (attention, step):
        part.add_argument("--profile", action="store_true", help="also show which kernels the time goes to")


def _positive_number(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: give 1 or more")
    return number


def _run_attention(args: argparse.Namespace) -> int:
    from nld_train.bench.attention import bench_attention
    from nld_train.bench.inputs import AttentionShape

    device = _chosen_device(args)
    shape = AttentionShape(**_chosen_sizes("attention", args, device))
    effort = _chosen_effort(args, repetitions=5 if device.type == "cuda" else 1)
    return _show_outcome(
        bench_attention(shape, _chosen_dtype(args, device), effort, device, profiled=args.profile), args
    )


def _run_loss(args: argparse.Namespace) -> int:
    from nld_train.bench.head_loss import HeadShape, bench_loss

    device = _chosen_device(args)
    shape = HeadShape(**_chosen_sizes("loss", args, device))
    return _show_outcome(
        bench_loss(shape, _chosen_dtype(args, device), _chosen_effort(args, repetitions=2), device), args
    )


def _run_step(args: argparse.Namespace) -> int:
    import torch

    from nld_train import recipe
    from nld_train.bench.plain_model import plain_steps
    from nld_train.bench.step_bench import (
        MEGATRON_LAYERS,
        PLAIN_LAYERS,
        bench_steps,
        with_fitting_layers,
        with_one_rank,
    )

    device = _chosen_device(args)
    on_gpu = device.type == "cuda"
    name = args.recipe or ("nld_8b_stage2_joint" if on_gpu else "tiny_stage2_joint")
    run = with_one_rank(recipe.load_recipe(name, args.override))
    if not run.diffusion.dual or run.objective is not None:
        raise UserError(f"--recipe {name}", "a recipe of a joint stage", "stage 1 is measured beside it anyway")
    if on_gpu and not any(word.startswith("model.layers=") for word in args.override):
        run = with_fitting_layers(run, torch.cuda.get_device_properties(device).total_memory)
    effort = _chosen_effort(args, repetitions=3 if on_gpu else 1, resident=not on_gpu)
    if args.plain or find_spec("megatron") is None:
        kind, steps = PLAIN_LAYERS, plain_steps(run, device)
    else:
        from nld_train.bench.megatron_rank import prepare_megatron_steps

        kind, steps = MEGATRON_LAYERS, prepare_megatron_steps(run, device)
    return _show_outcome(bench_steps(run, kind, steps, effort, device, profiled=args.profile), args)


def _run_check(args: argparse.Namespace) -> int:
    from nld_train.bench.kernel_check import check_kernels, default_check_plan

    device = _chosen_device(args)
    plan = default_check_plan(device, args.draws, args.seconds)
    return _show_outcome(check_kernels(plan, _chosen_dtype(args, device), device), args)


def _run_training(args: argparse.Namespace) -> int:
    from nld_train.bench.training import ShortTraining, bench_training

    require(find_spec("megatron") is not None, "training without Megatron", "an environment with it", "make setup")
    device = _chosen_device(args)
    steps = args.steps or (200 if device.type == "cuda" else 40)
    require(steps > 1, f"--steps {steps}", "2 or more: it is resumed half-way", "give more")
    return _show_outcome(bench_training(ShortTraining(steps, args.seconds, tuple(args.override)), device), args)


def _chosen_device(args: argparse.Namespace) -> "torch.device":
    import torch

    found = torch.cuda.is_available()
    if args.device == "cuda" and not found:
        raise UserError("--device cuda", "cpu: torch finds no GPU here", "run it on a machine with one")
    return torch.device("cuda" if found and args.device != "cpu" else "cpu")


def _chosen_dtype(args: argparse.Namespace, device: "torch.device") -> "torch.dtype":
    import torch

    name = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    return torch.bfloat16 if name == "bf16" else torch.float32


def _chosen_effort(args: argparse.Namespace, repetitions: int, resident: bool = True) -> "Effort":
    from nld_train.bench.measure import Effort

    return Effort(args.rounds, repetitions, args.seconds, resident)


def _chosen_sizes(part: str, args: argparse.Namespace, device: "torch.device") -> dict[str, int]:
    """Every size of a part, given or by default."""
    place = 0 if device.type == "cuda" else 1
    return {name: vars(args)[name] or defaults[place] for name, defaults in SIZES[part].items()}


def _show_outcome(outcome: "BenchOutcome", args: argparse.Namespace) -> int:
    """Print the table, write the figures; the exit status is 1 where a result is wrong."""
    from nld_train.bench.outcome import outcome_markdown, outcomes_to_json
    from nld_train.files import write_text

    print(outcome_markdown(outcome), flush=True)
    if args.json is not None:
        write_text(args.json, outcomes_to_json([outcome]))
    return 1 if outcome.wrong else 0


def bench_main(words: Sequence[str]) -> int:
    """The same parts without the `nld` command, and without Megatron."""
    top = argparse.ArgumentParser(
        prog="python -m nld_train.commands.bench", description=BENCH_HELP, formatter_class=RAW
    )
    _add_bench_parts(top)
    args = top.parse_args(words)
    args.plain = True  # of a step: torch layers
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return int(args.run(args))
    except UserError as error:
        print(f"nld: {error}", file=sys.stderr)
        return REFUSED


if __name__ == "__main__":
    sys.exit(bench_main(sys.argv[1:]))
