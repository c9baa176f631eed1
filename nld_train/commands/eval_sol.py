"""`nld eval sol`: how many tokens per forward an oracle could take from the model."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nld_train.commands.eval import add_model_options, add_prompt_options, output_folder
from nld_train.commands.generate import choose_device
from nld_train.errors import UserError, require
from nld_train.exit_status import FINISHED

if TYPE_CHECKING:  # they import torch
    from nld_train.evaluation.evaluated_model import ModelChoice

HELP = """\
Speed of light: the fewest steps in which blocks of masks can be filled with the text that denoising one token a step
makes of them, by an oracle that knows this text. It bounds every sampler that ends in the same text, so it says what a
better one could still give.

  nld eval sol out/demo/hf --prompts prompts.jsonl --block 4,8,16,32
  nld eval sol out/demo/hf --prompts prompts.jsonl --block 8 --threshold 0.5,0.9 --max-new-tokens 64
  nld eval sol out/demo/hf --prompts prompts.jsonl --depth 0           greedy acceptance alone, the quickest
  nld eval sol out/demo/hf --prompts prompts.jsonl --shard 2/4         a quarter of the prompts, for another process

For every block length and category:
  greedy      commits every token that is right; need not end in the text
  compact.    recursive dynamic compaction: ends in the text on every block
  light       speed of light: the fewest steps of compaction, greedy and the thresholds, where they end in the text
  linear      linear self-speculation behind the same prompts: tokens per cycle of two forwards
  real, gap   tokens per forward, a cache refresh per block included, and how far light is above linear

A block is masks alone, without a seed token, behind the prompt and the texts of the blocks before. A context ends
before the block whose text holds an end of text. Killed, the same command goes on where it stopped.
"""


def add_sol_parser(evaluations: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    sol = evaluations.add_parser(
        "sol", help="speed of light: the gap to an oracle", description=HELP, formatter_class=raw
    )
    add_model_options(sol)
    add_prompt_options(sol)
    sol.add_argument("--block", default="4,8,16,32", metavar="B,B", help="block lengths (default: %(default)s)")
    sol.add_argument(
        "--threshold", default="0.5,0.7,0.9", metavar="P,P", help="of the real samplers (default: %(default)s)"
    )
    sol.add_argument(
        "--depth", type=int, default=1, metavar="N", help="levels of compaction; 0: without (default: %(default)s)"
    )
    sol.add_argument(
        "--budget",
        type=int,
        default=5000,
        metavar="N",
        help="states that it may ask for per block (default: %(default)s)",
    )
    sol.set_defaults(run=run_sol)


def run_sol(args: argparse.Namespace) -> int:
    """Measure every context in every block length, and print the table."""
    # 1. What the command line says is checked before anything is imported that takes seconds.
    lengths, thresholds = _parse_blocks(args), _parse_thresholds(args)
    require(args.depth >= 0, f"--depth {args.depth}", "0 or more", "1 is greedy acceptance as the check")
    require(args.budget >= 1, f"--budget {args.budget}", "1 or more", "correct it")
    require(args.chat or not args.thinking, "--thinking without --chat", "the two together", "add --chat")
    from nld_train.evaluation.evaluated_model import model_identity
    from nld_train.evaluation.prompt_file import read_prompt_file
    from nld_train.evaluation.record_file import RecordFile
    from nld_train.evaluation.results import parse_shard, prompts_identity, records_path, shard_prompts, write_figures

    shard, path = parse_shard(args.shard), Path(args.prompts)
    prompts = shard_prompts(read_prompt_file(path, args.category), shard)
    require(len(prompts) > 0, f"--shard {args.shard} holds no prompt", "as many shards as prompts", "lower N")
    choice, output = _model_choice(args), output_folder(args)
    identity = model_identity(choice) | prompts_identity(path, args.category)
    identity |= {name: vars(args)[name] for name in ("chat", "thinking", "max_new_tokens", "depth", "budget")}
    identity |= {"blocks": lengths, "thresholds": thresholds}
    records = RecordFile(records_path(output, "sol", shard), identity, args.overwrite)
    # 2. The model measures what is missing.
    _measure(args, choice, prompts, records)
    # 3. The figures.
    if shard is not None:
        print(f"{records.path}: {len(records.records)} records; `nld eval merge` joins the shards")
        return FINISHED
    from nld_train.evaluation.oracle_figures import oracle_table

    print(oracle_table(write_figures(output, "sol")))
    print(f"figures in {output / 'sol.json'}, records in {records.path}")
    return FINISHED


def _measure(args: argparse.Namespace, choice: "ModelChoice", prompts: Any, records: Any) -> None:
    from transformers.utils.logging import disable_progress_bar

    from nld_train.decode.run import text_ends
    from nld_train.decode.settings import DecodeConfig
    from nld_train.evaluation.contexts import ContextSettings, build_contexts
    from nld_train.evaluation.evaluated_model import open_evaluated_model
    from nld_train.evaluation.oracle_blocks import OracleSettings, check_oracle_room, measure_contexts
    from nld_train.evaluation.oracle_progress import progress_display

    disable_progress_bar()
    evaluated = open_evaluated_model(choice)
    decode = DecodeConfig(max_new_tokens=args.max_new_tokens)
    contexts, decode = build_contexts(evaluated, prompts, ContextSettings(decode, args.chat, args.thinking))
    config = evaluated.model.config
    lengths, thresholds = tuple(_parse_blocks(args)), tuple(_parse_thresholds(args))
    ends = text_ends(config, decode)
    settings = OracleSettings(lengths, thresholds, args.depth, args.budget, args.max_new_tokens, ends)
    check_oracle_room(contexts, settings, config.max_position_embeddings)
    with progress_display("speed of light", settings.units(len(contexts)), sys.stderr) as advance:
        measure_contexts(evaluated.model, contexts, settings, records, advance)


def _model_choice(args: argparse.Namespace) -> "ModelChoice":
    import torch

    from nld_train.evaluation.evaluated_model import ModelChoice

    dtype = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[args.dtype]
    adapter = None if args.adapter is None else Path(args.adapter)
    device = torch.device(choose_device(args.device, torch.cuda.is_available()))
    return ModelChoice(Path(args.folder), args.step, adapter, dtype, device)


def _parse_blocks(args: argparse.Namespace) -> list[int]:
    """--block as numbers. Raises: UserError."""
    allowed = "whole numbers of 1 or more with commas between, each once"
    try:
        lengths = [int(text) for text in args.block.split(",")]
    except ValueError:
        raise UserError(f"--block {args.block}", allowed, "correct it") from None
    require(min(lengths) >= 1 and len(set(lengths)) == len(lengths), f"--block {args.block}", allowed, "correct it")
    require(args.max_new_tokens >= 1, f"--max-new-tokens {args.max_new_tokens}", "1 or more", "raise it")
    for length in lengths:
        got = f"--max-new-tokens {args.max_new_tokens} with --block {length}"
        whole = -(-args.max_new_tokens // length) * length
        require(whole == args.max_new_tokens, got, f"multiples of {length}", f"use {whole}, or another block")
    return lengths


def _parse_thresholds(args: argparse.Namespace) -> list[float]:
    """--threshold as numbers. Raises: UserError."""
    allowed = "probabilities above 0, at most 1, with commas between, each once"
    try:
        thresholds = [float(text) for text in args.threshold.split(",")]
    except ValueError:
        raise UserError(f"--threshold {args.threshold}", allowed, "correct it") from None
    fine = all(0 < threshold <= 1 for threshold in thresholds) and len(set(thresholds)) == len(thresholds)
    require(fine, f"--threshold {args.threshold}", allowed, "correct it")
    return thresholds
