"""`nld launch`: a recipe's run on this machine or on a cluster."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nld_train import recipe
from nld_train.config import RunConfig, require
from nld_train.exit_status import FINISHED

if TYPE_CHECKING:  # they take seconds to import
    from nld_train.launch.nemo_experiment import SlurmSubmission
    from nld_train.launch.sbatch_script import Submission
    from nld_train.launch.site import Site

LAUNCH_HELP = """\
Place a recipe's run on this machine, or on the nodes of a Slurm cluster. The recipe says what is trained, the site file
says where; slurm/site.env.example explains its lines.

  nld launch nld_8b_stage2_joint --executor slurm --dry-run        prints the script that would be submitted
  nld launch nld_8b_stage2_joint --executor slurm                  checks the site and the run, then submits
  nld launch tiny_stage1_ar --executor slurm --nodes 2 --site slurm/cpu.env
  nld launch nld_8b_stage2_joint --executor slurm --after out/nld_8b/stage1_ar
                                                  starts from that run's weights, once its job has ended well
  nld launch nld_8b_sft --executor slurm --after out/nld_8b/stage2_joint --then-export out/nld_8b/hf
                                                  and a job behind it that makes the Hugging Face folder
  nld launch tiny_stage1_ar --executor local      the same as nld train
  nld launch data corpus --tokenizer tokenizer --output data/mix --shards 64
                                                  text, not a recipe: `nld launch data --help`
  nld launch eval decode out/nld_8b/hf --prompts prompts.jsonl --shards 16
                                                  prompts to evaluate with: `nld launch eval --help`
  nld launch sampler out/nld_8b/hf --prompts prompts.jsonl --output out/trajectories --shards 16
                                                  data for its sampler: `nld launch sampler --help`
  nld launch nld_8b_stage1_ar --executor nemo-run through nemo-run's Slurm executor; --nemo local: its local one

Nothing is submitted where the site file, the layout, the data or the weights to start from are wrong, or where Slurm
says that it would not take the job.
"""


def add_launch_parser(commands: argparse._SubParsersAction) -> None:
    launch = commands.add_parser(
        "launch",
        help="submit a recipe to a cluster",
        description=LAUNCH_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    launch.set_defaults(run=run_launch)


def run_launch(args: argparse.Namespace) -> int:
    by_nemo = args.executor == "nemo-run"
    require(by_nemo or not args.nemo, f"--nemo, --executor {args.executor}", "--executor nemo-run", "leave one away")
    if args.executor == "slurm" or (by_nemo and args.nemo != "local"):
        return _launch_on_slurm(args, by_nemo)
    chained = args.after or args.then_export
    require(chained is None, "--after or --then-export here", "--executor slurm or nemo-run", "do one after the other")
    run = recipe.load_recipe(args.recipe, args.override)
    return _launch_here_by_nemo(args, run) if by_nemo else _launch_here(args, run)


def _launch_here(args: argparse.Namespace, run: RunConfig) -> int:
    if args.dry_run:
        from nld_train.launch.sbatch_script import train_command

        print(train_command(args.recipe, args.override), end="")
        return FINISHED
    from nld_train.start.start_run import start_run

    return start_run(run)


def _launch_here_by_nemo(args: argparse.Namespace, run: RunConfig) -> int:
    from nld_train.doctor.start_checks import check_ranks, check_run_data, check_start
    from nld_train.launch.nemo_home import prepare_nemo_run

    prepare_nemo_run(Path(run.output))
    from nld_train.launch.nemo_experiment import local_command, run_locally

    if args.dry_run:
        print(local_command(run, args.recipe, args.override), end="")
        return FINISHED
    check_ranks(run)
    check_start(run)
    check_run_data(run)
    return run_locally(run, args.recipe, args.override)


def _launch_on_slurm(args: argparse.Namespace, by_nemo: bool) -> int:
    from nld_train.launch import submit
    from nld_train.launch.sbatch_script import export_script, training_script
    from nld_train.launch.site import read_site

    # 1. Where the run is placed, and which run it starts from.
    site = read_site(Path(args.site))
    overrides, after = list(args.override), None
    if args.after is not None:
        after = submit.newest_training_job(site.job_folder / args.after)
        overrides.append(f"init={args.after}")
    # 2. The jobs: the run, and its export behind it.
    run = recipe.load_recipe(args.recipe, overrides)
    submission = submit.plan_submission(run, args.recipe, overrides, args.nodes, after, site)
    nemo = _nemo_submission(run, submission, site) if by_nemo else None
    script = nemo.script() if nemo else training_script(submission, site)
    export = submit.plan_export(submission, args.then_export, site) if args.then_export else None
    if args.dry_run:
        print(script, end="")
        print(export_script(export, site) if export else "", end="")
        return FINISHED
    # 3. Everything that would be refused on the nodes is refused here, before Slurm is asked.
    submit.check_before_submission(run, submission, export, site)
    # 4. Into the queue.
    if nemo:
        submit.check_slurm_accepts(script, submission, site)
        number = nemo.submit()
        submit.record_submitted_script(script, submission, number)
    else:
        number = submit.submit_script(script, submission, site)
    print(number)
    if export:
        print(submit.submit_export(export, number, site))
    return FINISHED


def _nemo_submission(run: RunConfig, submission: "Submission", site: "Site") -> "SlurmSubmission":
    from nld_train.launch.nemo_home import prepare_nemo_run

    prepare_nemo_run(site.job_folder / run.output)
    from nld_train.launch.nemo_experiment import SlurmSubmission

    return SlurmSubmission(run, submission, site)
