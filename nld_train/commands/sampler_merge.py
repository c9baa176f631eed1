"""`nld sampler merge`: are all parts of a collection there, as they were written?"""

import argparse
from pathlib import Path

from nld_train.exit_status import FINISHED

HELP = """\
Check a folder of trajectories, whichever shards wrote its parts: all of them must be there, with the bytes that they
were written with. Then its index is written, which the last shard does too.

  nld sampler merge out/trajectories
"""


def add_sampler_merge_parser(actions: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    merge = actions.add_parser("merge", help="check the parts, and write their index", description=HELP,
                               formatter_class=raw)  # fmt: skip
    merge.add_argument("folder", metavar="DIR", help="--output of the shards")
    merge.set_defaults(run=run_sampler_merge)


def run_sampler_merge(args: argparse.Namespace) -> int:
    from nld_train.sampler.collect import merge_parts

    parts, trajectories = merge_parts(Path(args.folder))
    print(f"{args.folder}: {trajectories:,} trajectories in {parts} parts, all as they were written")
    return FINISHED
