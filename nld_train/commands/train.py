"""`nld train`: from the command line to the exit status of a run on this machine."""

import argparse
import os

from nld_train import recipe
from nld_train.config import RunConfig, require
from nld_train.exit_status import FAILED, FINISHED, LEFT_AT_ONCE, REFUSED, STOPPED, UNHEALTHY_NODE

TRAIN_HELP = f"""\
Train a recipe: the same command and the same code on one CPU and on many GPUs.

  nld train tiny_stage1_ar                        a name, or a recipe file (FILE.py:NAME if it has several)
  nld train tiny_stage1_ar --nproc 2              two ranks on this machine
  nld train tiny_stage1_ar train.iterations=20 output=out/try
  nld train nld_8b_stage2_joint train.global_batch=256
                                                  the token budget stays, the iterations follow: 286,102
  nld train nld_8b_sft init=models/NLD-8B         from a Hugging Face folder: imported into OUTPUT/init first
  nld train nld_8b_stage2_joint --dry-run         parameters, FLOPs, memory per GPU; starts nothing
  nld train nld_8b_stage2_joint --meet n0:29500 --nodes 32 --node 0
                                                  on the first of 32 nodes; `nld launch` does this under Slurm
  torchrun --nproc-per-node 2 -m nld_train.cli train tiny_stage1_ar
                                                  under a torchrun of your own: each process is one rank

A run resumes by itself where its output folder holds a checkpoint of the same run. SIGTERM, SIGUSR1, Ctrl-C or a file
OUTPUT/stop let it finish its step, save and leave. Exit status:

  {FINISHED:<5}finished
  {STOPPED:<5}stopped as asked, saved: the same command goes on
  {FAILED:<5}failed
  {REFUSED:<5}refused by the start checks, or by the memory trial: no step was taken
  {UNHEALTHY_NODE:<5}a node failed its check before the start, and is named (on several nodes)
  {LEFT_AT_ONCE:<5}left at once, without saving: a second Ctrl-C, or ranks that give no answer
"""


def add_train_parser(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train", help="train a recipe", description=TRAIN_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    train.add_argument("recipe", help="recipe name or file; known: " + ", ".join(recipe.recipe_names()))
    train.add_argument("override", nargs="*", metavar="key=value", help="settings to change, by dotted key")
    train.add_argument("--nproc", type=int, metavar="N", help="ranks on this machine (default: what the recipe plans)")
    train.add_argument("--dry-run", action="store_true", help="check and print the plan; start nothing")
    train.add_argument("--meet", metavar="HOST:PORT", help="several nodes: an address on the first, two free ports")
    train.add_argument("--nodes", type=int, metavar="N", help="with --meet: how many (default: Slurm's count)")
    train.add_argument("--node", type=int, metavar="I", help="with --meet: which this is, from 0 (default: Slurm's)")
    train.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> int:
    overrides = list(args.override)
    if args.nproc is not None:
        overrides.append(f"parallel.world_size={args.nproc}")
    run = recipe.load_recipe(args.recipe, overrides)
    as_rank = "TORCHELASTIC_RUN_ID" in os.environ  # one of the processes of a torchrun that is not our own
    if not as_rank or os.environ["RANK"] == "0":
        print(recipe.dump_settings(run, overrides), flush=True)
    if args.dry_run:
        from nld_train.plan.dry_run import dry_run_text

        print(f"\n{dry_run_text(run)}")
        return FINISHED
    return _start_as_rank(args, run) if as_rank else _start_here(args, run)


def _start_as_rank(args: argparse.Namespace, run: RunConfig) -> int:
    from nld_train.start.foreign_torchrun import start_foreign_rank

    require(args.meet is None, "--meet under torchrun", "one of the two", "leave --meet away")
    return start_foreign_rank(run)


def _start_here(args: argparse.Namespace, run: RunConfig) -> int:
    from nld_train.node_check.before_start import check_nodes_before_start
    from nld_train.node_check.nodes import parse_nodes
    from nld_train.start.start_run import start_run

    nodes = parse_nodes(args.meet, args.nodes, args.node, os.environ)
    if nodes.rendezvous_address:
        status = check_nodes_before_start(run, nodes)
        if status is not None:
            return status
    return start_run(run, nodes)
