"""`nld launch`: a recipe's run on this machine or on a cluster."""

import argparse
from pathlib import Path

from nld_train import recipe
from nld_train.config import RunConfig, require

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
    from nld_train.launch.sbatch_script import train_command

    by_nemo = args.executor == "nemo-run"
    require(by_nemo or not args.nemo, f"--nemo, --executor {args.executor}", "--executor nemo-run", "leave one away")
    if args.executor == "slurm" or (by_nemo and args.nemo != "local"):
        return _launch_on_slurm(args)
    run = recipe.load_recipe(args.recipe, args.override)
    chained = args.after or args.then_export
    require(chained is None, "--after or --then-export here", "--executor slurm or nemo-run", "do one after the other")
    if by_nemo:
        return _launch_here_by_nemo(args, run)
    if args.dry_run:
        print(train_command(args.recipe, args.override), end="")
        return 0
    from nld_train.start.start_run import start_run

    return start_run(run)


def _launch_here_by_nemo(args: argparse.Namespace, run: RunConfig) -> int:
    from nld_train.doctor.start_checks import check_ranks, check_run_data, check_start
    from nld_train.launch.nemo_home import import_nemo_experiment

    nemo = import_nemo_experiment(Path(run.output))
    if args.dry_run:
        print(nemo.command_here(run, args.recipe, args.override), end="")
        return 0
    for check in (check_ranks, check_start, check_run_data):
        check(run)
    return nemo.run_here(run, args.recipe, args.override)


def _launch_on_slurm(args: argparse.Namespace) -> int:
    from nld_train.doctor.start_checks import check_run_data, check_start
    from nld_train.launch.nemo_home import import_nemo_experiment
    from nld_train.launch.sbatch_script import export_script, training_script
    from nld_train.launch.site import read_site
    from nld_train.launch.submit import (
        check_export,
        newest_training_job,
        plan_export,
        plan_submission,
        run_checks_in,
        submit_export,
        submit_script,
    )

    site = read_site(Path(args.site))
    overrides, after = list(args.override), None
    if args.after is not None:
        after = newest_training_job(site.folder / args.after)
        overrides.append(f"init={args.after}")
    run = recipe.load_recipe(args.recipe, overrides)
    job = plan_submission(run, args.recipe, overrides, args.nodes, after, site)
    by_nemo = (
        import_nemo_experiment(site.folder / run.output).OnSlurm(run, job, site)
        if args.executor == "nemo-run"
        else None
    )
    script = by_nemo.script() if by_nemo else training_script(job, site)
    export = plan_export(job, args.then_export, site) if args.then_export else None
    if args.dry_run:
        print(script, end="")
        print(export_script(export, site) if export else "", end="")
        return 0
    # The weights to start from are not there before that job has ended.
    checks = [check_run_data] if after else [check_start, check_run_data]
    run_checks_in(run, site, [*checks, check_export] if export else checks)
    number = submit_script(script, job, site, by_nemo.submit if by_nemo else None)
    print(number)
    if export:
        print(submit_export(export, number, site))
    return 0
