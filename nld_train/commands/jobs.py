"""`nld jobs`: what became of runs on a cluster."""

import argparse
from pathlib import Path

JOBS_HELP = """\
Show the jobs of runs: every start with its steps, tokens and loss, why it ended, which nodes failed or were left out,
what stopped a chain, and what Slurm has queued.

  nld jobs out/nld_8b/stage1_ar
  nld jobs out/nld_8b/*                           a whole chain, in the order the runs were launched
  nld jobs out/nld_8b/* --cancel                  cancel all of it; a running job saves first
"""


def add_jobs_parser(commands: argparse._SubParsersAction) -> None:
    jobs = commands.add_parser(
        "jobs",
        help="show or cancel the jobs of runs",
        description=JOBS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    jobs.add_argument("output", nargs="+", type=Path, help="output folders of runs")
    jobs.add_argument("--cancel", action="store_true", help="cancel those that wait or run; a running one saves first")
    jobs.set_defaults(run=run_jobs)


def run_jobs(args: argparse.Namespace) -> int:
    from nld_train.launch.jobs_report import cancel_jobs, chain_report

    if args.cancel:
        print(f"cancelled: {', '.join(cancel_jobs(args.output))}")
    else:
        print(chain_report(args.output))
    return 0
