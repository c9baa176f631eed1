"""`nld launch data`: text is prepared by a Slurm array of shards, and merged."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nld_train.commands.launch_shards import array_parser, read_handed_on, run_array

if TYPE_CHECKING:
    from nld_train.launch.shard_array import ShardedWork

HELP = """\
Prepare text on a Slurm cluster: an array of N jobs, a node each, makes the shards, and a job behind it merges them. All
that `nld data prepare` takes is handed on to it; paths start in the site's folder.

A shard that fails is queued again, and goes on where it stopped; one whose node is lost is queued again by Slurm. One
that refuses its input (exit status 2) is not. After an array that ended badly, the same command does what is missing.
"""
EXAMPLE = """\
example:
  nld launch data corpus --tokenizer tokenizer --output data/mix --shards 64 --partition cpu
"""


def parse_launch_data(words: list[str]) -> argparse.Namespace:
    """`nld launch data WORDS`: what is not of the array is of `nld data prepare`, and is read by its parser."""
    from data_prep.cli import add_data_commands

    args, rest = array_parser("data", HELP, EXAMPLE).parse_known_args(words)
    args.run = run_launch_data
    return read_handed_on(args, rest, ["data", "prepare"], add_data_commands)


def run_launch_data(args: argparse.Namespace) -> int:
    from data_prep.cli import check_preparation

    work = preparation_work(args.words, args.asked)
    return run_array(args, work, args.asked.shard, lambda: check_preparation(args.asked))


def preparation_work(words: Sequence[str], prepared: argparse.Namespace) -> "ShardedWork":
    """The shards and the merge of a preparation. prepared: `words` as the parser of `nld data prepare` reads them."""
    from nld_train.launch.shard_array import ShardedWork

    workers = ("--workers", str(prepared.workers)) if "--workers" in words else ()
    merge = (prepared.output, *workers, *(("--overwrite",) if prepared.overwrite else ()))
    return ShardedWork("data", "data prepare", "data merge", tuple(words), merge, prepared.output)
