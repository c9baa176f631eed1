"""`nld eval page`: what evaluations of one checkpoint or several have found, on one page."""

import argparse
from pathlib import Path

from nld_train.exit_status import FINISHED

HELP = """\
One page of evaluations: frontier, accepted lengths, speed of light, likelihood and tasks of every folder, and, where
there are several, a table that compares them.

  nld eval page out/demo/hf-eval --html page.html
  nld eval page out/demo/base-eval out/demo/drafter-eval --html comparison.html
"""


def add_page_parser(evaluations: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = evaluations.add_parser(
        "page", help="compare evaluations on one page", description=HELP, formatter_class=raw
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="--output of `nld eval`")
    parser.add_argument("--html", required=True, metavar="FILE", help="write the page there")
    parser.set_defaults(run=run_page)


def run_page(args: argparse.Namespace) -> int:
    from nld_train.report.evaluation_page import write_evaluation_page

    write_evaluation_page([Path(folder) for folder in args.folders], Path(args.html))
    print(f"wrote {args.html}")
    return FINISHED
