"""What `nld launch data`, `eval` and `sampler` share: options of the array, and handing it to Slurm."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

from nld_train.errors import require
from nld_train.exit_status import FINISHED

if TYPE_CHECKING:
    from nld_train.launch.shard_array import ShardedWork


AddParser = Callable[[argparse._SubParsersAction], object]


def array_parser(what: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of the array's own options of `nld launch WHAT`."""
    from nld_train.launch.shard_array import add_array_options

    raw = argparse.RawDescriptionHelpFormatter
    name = f"nld launch {what}"
    parser = argparse.ArgumentParser(
        name, description=description, epilog=example, formatter_class=raw, allow_abbrev=False
    )
    add_array_options(parser)
    return parser


def read_handed_on(
    args: argparse.Namespace, rest: list[str], command: Sequence[str], add_parser: AddParser
) -> argparse.Namespace:
    """The array's options, with the words that are handed on to every job: `words`, and as their own parser reads them,
    `asked`. command: the words of `nld` before them; add_parser: adds the parser of the first of these."""
    top = argparse.ArgumentParser("nld launch")
    add_parser(top.add_subparsers(required=True))
    args.words, args.asked, args.command = rest, top.parse_args([*command, *rest]), "launch"
    return args


def check_model_array(asked: argparse.Namespace) -> None:
    """Refuse for an array what none of its jobs could use. asked: the options of `nld eval` or `nld sampler collect`.
    Raises: UserError."""
    require(Path(asked.folder).is_dir(), f"no folder {asked.folder}", "a checkpoint's", "check the path")
    again = "a shard that is queued again goes on with what it has"
    require(not asked.overwrite, "--overwrite with an array", again, "give another --output")


def run_array(args: argparse.Namespace, work: "ShardedWork", shard: str | None, check: Callable[[], None]) -> int:
    """Print the scripts of an array, or queue it. shard: what --shard of the work says. check: refuses in the site's
    folder what the jobs would refuse, before anything is queued."""
    from nld_train.launch.shard_array import array_of, array_script, merge_script, submit_array
    from nld_train.launch.site import read_site

    site = read_site(Path(args.site))
    array = array_of(args, work, shard)
    if args.dry_run:
        print(array_script(array, site) + merge_script(array, site, "ARRAY"), end="")
        return FINISHED
    with chdir(site.job_folder):
        check()
    print("\n".join(submit_array(array, site)))
    return FINISHED
