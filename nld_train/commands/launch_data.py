"""`nld launch data`: text is prepared by a Slurm array of shards, and merged."""

import argparse
from pathlib import Path

from nld_train.exit_status import FINISHED


def parse_launch_data(words: list[str]) -> argparse.Namespace:
    """`nld launch data WORDS`: what is not of the array is of `nld data prepare`, and is read by its parser."""
    from data_prep.cli import add_data_commands
    from nld_train.launch.data_array import data_array_parser

    args, rest = data_array_parser().parse_known_args(words)
    top = argparse.ArgumentParser("nld launch")
    add_data_commands(top.add_subparsers(required=True))
    args.words, args.prepared, args.run = rest, top.parse_args(["data", "prepare", *rest]), run_launch_data
    args.command = "launch"
    return args


def run_launch_data(args: argparse.Namespace) -> int:
    from contextlib import chdir

    from data_prep.cli import check_preparation
    from nld_train.launch.data_array import array_of, array_script, merge_script, submit_array
    from nld_train.launch.site import read_site

    site = read_site(Path(args.site))
    array = array_of(args, args.words, args.prepared)
    if args.dry_run:
        print(array_script(array, site) + merge_script(array, site, "ARRAY"), end="")
        return FINISHED
    with chdir(site.job_folder):
        check_preparation(args.prepared)
    print("\n".join(submit_array(array, site)))
    return FINISHED
