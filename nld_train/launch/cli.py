"""The command line of `nld launch`, `nld jobs`, and `nld requeue`, which jobs ask."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

RAW = argparse.RawDescriptionHelpFormatter
STOP = 3  # exit status of `nld requeue`: the job does not go on

LAUNCH_HELP = """\
Place a recipe's run: on this machine, or on the nodes of a Slurm cluster. The recipe says what is trained, the site
file where; slurm/site.env.example explains its lines.

  nld launch nld_8b_stage2_joint --executor slurm --dry-run        prints the script that would be submitted
  nld launch nld_8b_stage2_joint --executor slurm                  checks the site and the run, then submits
  nld launch tiny_stage1_ar --executor slurm --nodes 2 --site slurm/cpu.env
  nld launch nld_8b_stage2_joint --executor slurm --after out/nld_8b/stage1_ar
                                                  starts from that run's weights, once its job has ended well
  nld launch nld_8b_sft --executor slurm --after out/nld_8b/stage2_joint --then-export out/nld_8b/hf
                                                  and a job behind it that makes the Hugging Face folder
  nld launch tiny_stage1_ar --executor local      the same as nld train
  nld launch nld_8b_stage1_ar --executor nemo-run through nemo-run's Slurm executor; --nemo local: its local one

Nothing is submitted where the site file, the layout, the data or the weights to start from are wrong, or where Slurm
says that it would not take the job.
"""
JOBS_HELP = """\
Show the jobs of runs: every start with its steps, tokens and loss, why it ended, which nodes failed or were left out,
what stopped a chain, and what Slurm has queued.

  nld jobs out/nld_8b/stage1_ar
  nld jobs out/nld_8b/*                           a whole chain, in the order the runs were launched
  nld jobs out/nld_8b/* --cancel                  cancel all of it; a running job saves first
"""
REQUEUE_HELP = """\
What a job's script asks when its run has left before its last step: does the same job go on, and without which nodes?
The answer goes into the run's jobs.jsonl as well. Reads lines "NODE STATE" of the job's partition from its input:

  sinfo -h -N -p gpu -o '%N %T' | nld requeue nld_8b_stage1_ar --status 1 --how left

Prints the nodes to leave out, with commas between. Exit status 0: it goes on; 3: the chain stops.
"""


def add_launch_parser(commands: argparse._SubParsersAction, run: Callable[[argparse.Namespace], int]) -> None:
    launch = commands.add_parser(
        "launch", help="submit a recipe to a cluster", description=LAUNCH_HELP, formatter_class=RAW
    )
    launch.add_argument("recipe", help="recipe name or file")
    launch.add_argument("override", nargs="*", metavar="key=value", help="settings to change, by dotted key")
    launch.add_argument("--executor", required=True, choices=("local", "slurm", "nemo-run"))
    launch.add_argument("--nemo", choices=("local", "slurm"), help="which executor of nemo-run's (default: slurm)")
    launch.add_argument("--nodes", type=int, metavar="N", help="how many (default: as few as hold the ranks)")
    launch.add_argument(
        "--site", default="slurm/site.env", metavar="FILE", help="where runs are placed (default: %(default)s)"
    )
    launch.add_argument("--after", metavar="OUTPUT", help="Slurm: start from a launched run when it has ended well")
    launch.add_argument("--then-export", metavar="DIR", help="Slurm: a Hugging Face folder to make when it is finished")
    launch.add_argument("--dry-run", action="store_true", help="print what would be submitted or run; start nothing")
    launch.set_defaults(run=run)


def add_jobs_parser(commands: argparse._SubParsersAction) -> None:
    jobs = commands.add_parser(
        "jobs", help="show or cancel the jobs of runs", description=JOBS_HELP, formatter_class=RAW
    )
    jobs.add_argument("output", nargs="+", type=Path, help="output folders of runs")
    jobs.add_argument("--cancel", action="store_true", help="cancel those that wait or run; a running one saves first")
    jobs.set_defaults(run=run_jobs)


def run_jobs(args: argparse.Namespace) -> int:
    from nld_train.launch.jobs import cancel, chain_report

    if args.cancel:
        print(f"cancelled: {', '.join(cancel(args.output))}")
    else:
        print(chain_report(args.output))
    return 0


def add_requeue_parser(commands: argparse._SubParsersAction) -> None:
    requeue = commands.add_parser(
        "requeue", help="does a job go on? (asked by its script)", description=REQUEUE_HELP, formatter_class=RAW
    )
    requeue.add_argument("recipe", help="recipe name or file of the run")
    requeue.add_argument("override", nargs="*", metavar="key=value", help="its settings")
    requeue.add_argument("--status", type=int, required=True, help="exit status of the run")
    requeue.add_argument(
        "--how", required=True, help="left, preempted, timeout, cancelled or requeued (by Slurm itself)"
    )
    requeue.add_argument("--silent", default="", metavar="NODES", help="those of the job that no longer answer")
    requeue.add_argument("--left-out", default="", metavar="NODES", help="those it is queued without already")
    requeue.set_defaults(run=run_requeue)


def run_requeue(args: argparse.Namespace) -> int:
    from nld_train import recipe
    from nld_train.launch.requeue import Ending, close, read_partition, said

    run = recipe.load(args.recipe, args.override)
    nodes, silent, left_out = (
        tuple(text.split()) for text in (os.environ.get("NLD_NODES", ""), args.silent, args.left_out)
    )
    ending = Ending(args.status, args.how, nodes, silent, left_out, read_partition(sys.stdin.read()))
    decided = close(Path(run.output), ending, os.environ)
    print(said(decided), file=sys.stderr)
    print(",".join(decided.excluded))
    return STOP if decided.stopped else 0
