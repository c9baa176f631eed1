"""`nld requeue`: the question of a job's script whose run has left before its last step."""

import argparse
import os
import sys
from pathlib import Path

from nld_train.exit_status import CHAIN_STOPS, FINISHED

REQUEUE_HELP = f"""\
A job's script asks this when its run has left before its last step: does the same job go on, and without which nodes?
The answer is recorded in the run's jobs.jsonl as well. The input holds lines "NODE STATE" of the job's partition:

  sinfo -h -N -p gpu -o '%N %T' | nld requeue nld_8b_stage1_ar --status 1 --how left

It prints the nodes to leave out, separated by commas. Exit status:

  {FINISHED}    the job goes on        {CHAIN_STOPS}    the chain stops
"""


def add_requeue_parser(commands: argparse._SubParsersAction) -> None:
    requeue = commands.add_parser(
        "requeue",
        help="does a job go on? (asked by its script)",
        description=REQUEUE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    requeue.add_argument("recipe", help="recipe name or file of the run")
    requeue.add_argument("override", nargs="*", metavar="key=value", help="the overrides that the run was started with")
    requeue.add_argument("--status", type=int, required=True, help="exit status of the run")
    requeue.add_argument(
        "--how", required=True, help="left, preempted, timeout, cancelled or requeued (by Slurm itself)"
    )
    requeue.add_argument("--silent", default="", metavar="NODES", help="nodes of the job that no longer answer")
    requeue.add_argument("--left-out", default="", metavar="NODES", help="nodes that the job is queued without already")
    requeue.set_defaults(run=run_requeue)


def run_requeue(args: argparse.Namespace) -> int:
    from nld_train import recipe
    from nld_train.launch.requeue_decision import AttemptEnd, close_attempt, parse_node_states, requeue_message
    from nld_train.node_check.nodes import NAMES

    run = recipe.load_recipe(args.recipe, args.override)
    ending = AttemptEnd(
        status=args.status,
        ended_by=args.how,
        nodes=tuple(os.environ.get(NAMES, "").split()),
        unresponsive=tuple(args.silent.split()),
        already_excluded=tuple(args.left_out.split()),
        node_states=parse_node_states(sys.stdin.read()),
    )
    decision = close_attempt(Path(run.output), ending, os.environ)
    print(requeue_message(decision), file=sys.stderr)
    print(",".join(decision.excluded))
    return CHAIN_STOPS if decision.stop_reason else FINISHED
