"""`nld launch eval`: prompts are answered by a Slurm array of shards, and the records are merged."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nld_train.commands.launch_shards import array_parser, check_model_array, read_handed_on, run_array
from nld_train.errors import require

if TYPE_CHECKING:
    from nld_train.launch.shard_array import ShardedWork

HELP = """\
Evaluate on a Slurm cluster: an array of N jobs, each with every Nth prompt, and a job behind it that merges what they
found: the figures of one process. WHAT is likelihood, decode or sol; all that `nld eval WHAT` takes is handed on to it,
and paths start in the site's folder. A job takes one GPU, or a whole node where the site's nodes have none.

A shard that fails is queued again, and goes on where it stopped; one whose node is lost is queued again by Slurm. One
that refuses its input (exit status 2) is not. After an array that ended badly, the same command does what is missing.
"""
EXAMPLE = """\
example:
  nld launch eval decode out/nld_8b/hf --prompts prompts.jsonl --output out/decoded --shards 16
"""


def parse_launch_eval(words: list[str]) -> argparse.Namespace:
    """`nld launch eval WORDS`: what is not of the array is of `nld eval`, and is read by its parser."""
    from nld_train.commands.eval import add_eval_parser
    from nld_train.evaluation.shards import SHARDED

    parser = array_parser("eval", HELP, EXAMPLE)
    parser.add_argument("what", choices=SHARDED, metavar="WHAT", help=f"what is evaluated: {', '.join(SHARDED)}")
    args, rest = parser.parse_known_args(words)
    args.run = run_launch_eval
    return read_handed_on(args, rest, ["eval", args.what], add_eval_parser)


def run_launch_eval(args: argparse.Namespace) -> int:
    return run_array(
        args, evaluation_work(args.what, args.words, args.asked), args.asked.shard, lambda: check_evaluation_array(args)
    )


def evaluation_work(what: str, words: Sequence[str], asked: argparse.Namespace) -> "ShardedWork":
    """The shards and the merge of an evaluation. asked: `words` as the parser of `nld eval` reads them."""
    from nld_train.commands.eval import output_folder
    from nld_train.launch.shard_array import ShardedWork

    output = str(output_folder(asked))
    merge = (output, "--kind", what)
    return ShardedWork("eval", f"eval {what}", "eval merge", tuple(words), merge, output, uses_gpu=True)


def check_evaluation_array(args: argparse.Namespace) -> None:
    """Refuse here what every shard, or the merge, would refuse. Raises: UserError."""
    from nld_train.commands.eval import output_folder
    from nld_train.evaluation.prompt_file import read_prompt_file
    from nld_train.evaluation.results import records_path
    from nld_train.files import refuse_existing

    asked = args.asked
    check_model_array(asked)
    if "prompts" in asked:
        count = len(read_prompt_file(Path(asked.prompts), asked.category))
        require(
            args.shards <= count, f"--shards {args.shards} of {count} prompts", "a prompt or more each", "use fewer"
        )
    refuse_existing([records_path(output_folder(asked), args.what)])
