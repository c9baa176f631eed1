"""`nld launch sampler`: trajectories are collected by a Slurm array of shards into one folder, then checked."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nld_train.commands.launch_shards import array_parser, check_model_array, read_handed_on, run_array
from nld_train.errors import require

if TYPE_CHECKING:
    from nld_train.launch.shard_array import ShardedWork

HELP = """\
Collect trajectories on a Slurm cluster: an array of N jobs, each with every Nth part of the prompts, into one folder,
and a job behind it that checks it: `nld sampler merge`. All that `nld sampler collect` takes is handed on to it, and
paths start in the site's folder. A job takes one GPU, or a whole node where the site's nodes have none.

A shard that fails is queued again, and goes on where it stopped. One that refuses its input (exit status 2) is not.
"""
EXAMPLE = """\
example:
  nld launch sampler out/nld_8b/hf --prompts prompts.jsonl --output out/trajectories --shards 16
"""


def parse_launch_sampler(words: list[str]) -> argparse.Namespace:
    """`nld launch sampler WORDS`: what is not of the array is of `nld sampler collect`, and is read by its parser."""
    from nld_train.commands.sampler import add_sampler_parser

    args, rest = array_parser("sampler", HELP, EXAMPLE).parse_known_args(words)
    args.run = run_launch_sampler
    return read_handed_on(args, rest, ["sampler", "collect"], add_sampler_parser)


def run_launch_sampler(args: argparse.Namespace) -> int:
    work = collection_work(args.words, args.asked)
    return run_array(args, work, args.asked.shard, lambda: check_collection_array(args))


def collection_work(words: Sequence[str], asked: argparse.Namespace) -> "ShardedWork":
    """The shards and the check of a collection. asked: `words` as the parser of `nld sampler` reads them.

    Raises: UserError where no output is named."""
    from nld_train.launch.shard_array import ShardedWork

    require(asked.output is not None, "no --output", "the folder of the trajectories", "add --output DIR")
    merge = (asked.output,)
    return ShardedWork("sampler", "sampler collect", "sampler merge", tuple(words), merge, asked.output, uses_gpu=True)


def check_collection_array(args: argparse.Namespace) -> None:
    """Refuse here what every shard would refuse. Raises: UserError."""
    from nld_train.commands.sampler_collect import read_plan

    asked = args.asked
    check_model_array(asked)
    plan, _ = read_plan(asked)
    got = f"--shards {args.shards} of {plan.parts} parts"
    require(args.shards <= plan.parts, got, "a part or more each", "use fewer, or lower --part")
