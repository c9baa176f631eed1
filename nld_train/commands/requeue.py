"""`nld requeue`: what a job's script asks when its run has left before its last step."""

import argparse
import os
import sys
from pathlib import Path

from nld_train.exit_status import CHAIN_STOPS, FINISHED

REQUEUE_HELP = """\
What a job's script asks when its run has left before its last step: does the same job go on, and without which nodes?
The answer goes into the run's jobs.jsonl as well. Reads lines "NODE STATE" of the job's partition from its input:

  sinfo -h -N -p gpu -o '%N %T' | nld requeue nld_8b_stage1_ar --status 1 --how left

Prints the nodes to leave out, with commas between. Exit status 0: it goes on; 3: the chain stops.
"""


def add_requeue_parser(commands: argparse._SubParsersAction) -> None:
    requeue = commands.add_parser(
        "requeue",
        help="does a job go on? (asked by its script)",
        description=REQUEUE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    from nld_train.launch.requeue_decision import AttemptEnd, close_attempt, parse_node_states, requeue_message

    run = recipe.load_recipe(args.recipe, args.override)
    nodes, silent, left_out = (
        tuple(text.split()) for text in (os.environ.get("NLD_NODES", ""), args.silent, args.left_out)
    )
    ending = AttemptEnd(args.status, args.how, nodes, silent, left_out, parse_node_states(sys.stdin.read()))
    decided = close_attempt(Path(run.output), ending, os.environ)
    print(requeue_message(decided), file=sys.stderr)
    print(",".join(decided.excluded))
    return CHAIN_STOPS if decided.stopped else FINISHED
