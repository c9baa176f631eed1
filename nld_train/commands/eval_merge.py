"""`nld eval merge`: what shards of an evaluation have found becomes what one process would have."""

import argparse
from pathlib import Path

from nld_train.commands.eval import finish_evaluation
from nld_train.errors import require
from nld_train.exit_status import FINISHED

HELP = """\
Put the shards of an evaluation together: KIND.I-of-N.jsonl in DIR become KIND.jsonl, and KIND.json holds the figures,
those of one process. A shard that is missing, unfinished or of another evaluation is refused.

  nld eval decode out/demo/hf --prompts prompts.jsonl --output out/decoded --shard 1/2
  nld eval decode out/demo/hf --prompts prompts.jsonl --output out/decoded --shard 2/2
  nld eval merge out/decoded

`nld launch eval` does this on a Slurm cluster.
"""


def add_merge_parser(evaluations: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = evaluations.add_parser("merge", help="join the shards of one", description=HELP, formatter_class=raw)
    parser.add_argument("folder", metavar="DIR", help="--output of the shards")
    parser.add_argument("--kind", metavar="KIND", help="decode, for example (default: all that have shards there)")
    parser.add_argument("--overwrite", action="store_true", help="also where DIR holds a merged file already")
    parser.set_defaults(run=run_merge)


def run_merge(args: argparse.Namespace) -> int:
    from nld_train.evaluation.shards import SHARDED, find_evaluation_shards, merge_evaluation_shards

    folder = Path(args.folder)
    there = find_evaluation_shards(folder)
    kinds = list(there) if args.kind is None else [args.kind]
    require(bool(kinds), f"no shards in {folder}", " or ".join(f"{kind}.I-of-N.jsonl" for kind in SHARDED),
            "give the --output of the shards")  # fmt: skip
    for kind in kinds:
        records, shards = merge_evaluation_shards(folder, kind, args.overwrite)
        print(f"{folder / kind}.jsonl: {records} records of {shards} shards")
        finish_evaluation(folder, kind, None)
    return FINISHED
