"""`nld eval sol`: how many tokens per forward an oracle could take from the model."""

import argparse
from collections.abc import Sequence

from nld_train.commands.eval import (
    add_model_options,
    add_prompt_options,
    asked_identity,
    asked_prompts,
    finish_evaluation,
    model_choice,
    output_folder,
    parse_numbers,
)
from nld_train.errors import require

HELP = """\
Speed of light: the fewest steps found in which blocks of masks can be filled with the text that denoising one token a
step makes of them, by an oracle that knows this text. No sampler measured beside it that ends in the same text is
faster, so it says what a better one could still give.

  nld eval sol out/demo/hf --prompts prompts.jsonl --block 4,8,16,32
  nld eval sol out/demo/hf --prompts prompts.jsonl --block 8 --threshold 0.5,0.9 --max-new-tokens 64
  nld eval sol out/demo/hf --prompts prompts.jsonl --depth 0           greedy acceptance alone, the quickest
  nld eval sol out/demo/hf --prompts prompts.jsonl --depth 1           one level of compaction: quicker, farther away
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
MOST_BLOCK = 1024
# One level finds 2.11 tokens a step of the demo's model in blocks of 32, two find 2.88 for 1.6 times the CPU time.
DEPTH = 2


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
        "--depth", type=int, default=DEPTH, metavar="N", help="levels of compaction; 0: without (default: %(default)s)"
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
    """Measure every context in every block length, then print the table."""
    # 1. The command line, the prompts and the output folder are checked before a model is loaded.
    from nld_train.evaluation.results import parse_shard, records_path

    blocks = parse_numbers("--block", args.block, int, 1, MOST_BLOCK)
    check_block_lengths(blocks, args.max_new_tokens)
    thresholds = parse_numbers("--threshold", args.threshold, float, 0.0, 1.0)
    require(args.depth >= 0, f"--depth {args.depth}", "0 or more", f"use {DEPTH}")
    require(args.budget >= 1, f"--budget {args.budget}", "1 or more", "use 5000")
    shard, prompts = parse_shard(args.shard), asked_prompts(args)

    from nld_train.decode.run import text_ends
    from nld_train.decode.settings import DecodeConfig
    from nld_train.evaluation.contexts import ContextSettings, build_contexts
    from nld_train.evaluation.evaluated_model import model_identity, open_evaluated_model
    from nld_train.evaluation.oracle_blocks import OracleSettings, check_oracle_room, measure_contexts
    from nld_train.evaluation.oracle_figures import oracle_table
    from nld_train.evaluation.progress_bar import evaluation_progress
    from nld_train.evaluation.record_file import COUNT, RecordFile

    choice, target = model_choice(args), output_folder(args)
    identity = {
        "kind": "sol",
        **model_identity(choice),
        **asked_identity(args),
        "depth": args.depth,
        "budget": args.budget,
        "blocks": blocks,
        "thresholds": thresholds,
        COUNT: len(blocks) * sum(len(prompt.turns) for prompt in prompts),
    }
    records = RecordFile(records_path(target, "sol", shard), identity, args.overwrite)

    # 2. Every context in every block length, but for what is there already.
    evaluated = open_evaluated_model(choice)
    decode = DecodeConfig(max_new_tokens=args.max_new_tokens)
    contexts, decode = build_contexts(evaluated, prompts, ContextSettings(decode, args.chat, args.thinking))
    ends = text_ends(evaluated.model.config, decode)
    settings = OracleSettings(tuple(blocks), tuple(thresholds), args.depth, args.budget, args.max_new_tokens, ends)
    check_oracle_room(contexts, settings, evaluated.model.config.max_position_embeddings)
    with evaluation_progress("tokens", settings.units(len(contexts))) as progress:
        measure_contexts(evaluated.model, contexts, settings, records, progress.advance)

    # 3. The figures.
    return finish_evaluation(target, "sol", shard, oracle_table)


def check_block_lengths(blocks: Sequence[int], new: int) -> None:
    """Raises: UserError unless the new tokens are whole blocks of every length."""
    require(new >= 1, f"--max-new-tokens {new}", "1 or more", "raise it")
    for length in blocks:
        whole = -(-new // length) * length
        got = f"--max-new-tokens {new} with --block {length}"
        require(whole == new, got, f"multiples of {length}", f"use {whole}, or another block")
