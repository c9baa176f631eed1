"""`nld study`: the recipe's choices, tried in miniature."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nld_train.errors import require
from nld_train.exit_status import FAILED, FINISHED, LEFT_AT_ONCE

if TYPE_CHECKING:
    from nld_train.config import RunConfig
    from nld_train.study.contract import Study
    from nld_train.study.miniature import Miniature

    Chains = dict[str, list[Sequence[RunConfig]]]  # arm -> the runs of every seed, in order

HELP = """\
Try a choice of the recipe in miniature: each arm is trained with several seeds on the demo's text, 1.3M parameters on
one core at a time, and the arms are compared seed by seed.

  nld study                            the studies, and how long each takes
  nld study alpha                      one of them: table, out/study/alpha.md and out/study/alpha.html
  nld study alpha noise-law            several; what they share is trained once
  nld study all                        a night on two cores
  nld study alpha --steps 20 --seeds 2     a quick one, to see it work

Stopped, the same command goes on. Trained runs are kept in OUTPUT/runs, and are ordinary runs: `nld report` shows them.
"""
ALL = "all"
FIRST_SEED = 1


def add_study_parser(commands: argparse._SubParsersAction) -> None:
    study = commands.add_parser(
        "study",
        help="try the recipe's choices in miniature",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.add_argument("name", nargs="*", help="studies, or all; none: list them")
    study.add_argument("--output", default="out/study", metavar="DIR", help="default: %(default)s")
    study.add_argument("--steps", type=int, default=100, metavar="N", help="of a stage (default: %(default)s)")
    study.add_argument("--seeds", type=int, default=3, metavar="N", help="default: %(default)s")
    study.add_argument("--workers", type=int, metavar="N", help="runs at a time (default: one a core)")
    study.set_defaults(run=run_study)


def run_study(args: argparse.Namespace) -> int:
    from nld_train.study.catalog import STUDIES
    from nld_train.study.miniature import Miniature

    unknown = [name for name in args.name if name not in STUDIES and name != ALL]
    require(not unknown, f"study {', '.join(unknown)}", f"{', '.join(STUDIES)}, {ALL}", "choose one of them")
    cores = len(os.sched_getaffinity(0))
    workers = cores if args.workers is None else args.workers
    for name, value, most in (("steps", args.steps, 10**6), ("seeds", args.seeds, 100), ("workers", workers, cores)):
        require(1 <= value <= most, f"--{name} {value}", f"1 to {most:_}", "correct it")
    require(args.steps >= 4, f"--steps {args.steps}", "4 or more: a quarter of a stage is its decay", "raise it")
    names = list(STUDIES) if ALL in args.name or not args.name else list(dict.fromkeys(args.name))
    chosen = [STUDIES[name] for name in names]
    miniature = Miniature(Path(args.output), args.steps)
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    chains = {study.name: study_runs(study, miniature, seeds) for study in chosen}
    if not args.name:
        print(_listing(chosen, chains, workers))
        return FINISHED
    return _train_and_compare(chosen, chains, miniature, seeds, workers)


def study_runs(study: "Study", miniature: "Miniature", seeds: Sequence[int]) -> "Chains":
    """The runs of every arm and seed."""
    return {arm.name: [arm.runs(miniature, seed) for seed in seeds] for arm in study.arms}


def distinct_runs(chains: "Sequence[Chains]") -> "list[RunConfig]":
    """The runs of studies, each once, one that another starts from before it."""
    every = [run for arms in chains for seeds in arms.values() for chain in seeds for run in chain]
    return list({run.output: run for run in every}.values())


def _listing(studies: "Sequence[Study]", chains: "dict[str, Chains]", workers: int) -> str:
    from nld_train.report.columns import align_columns
    from nld_train.study.trainings import expected_minutes, untrained_runs

    rows = [["study", "question", "arms", "runs", "to train", "minutes"]]
    for study in studies:
        runs = distinct_runs([chains[study.name]])
        left = untrained_runs(runs)
        minutes = expected_minutes(left, workers)
        rows.append(
            [study.name, study.question, str(len(study.arms)), str(len(runs)), str(len(left)), f"{minutes:.0f}"]
        )
    together = untrained_runs(distinct_runs(list(chains.values())))
    rows.append([ALL, "", "", "", str(len(together)), f"{expected_minutes(together, workers):.0f}"])
    return align_columns(rows, left=2)


def _give_way(owner: object) -> None:
    print(f"nld: the folder is now in use by {owner or 'nobody'}: left to it", flush=True)
    os._exit(FAILED)


def _train_and_compare(
    studies: "Sequence[Study]",
    chains: "dict[str, Chains]",
    miniature: "Miniature",
    seeds: Sequence[int],
    workers: int,
) -> int:
    from nld_train.files import write_text
    from nld_train.run_folder.output_lock import held_output
    from nld_train.study.study_data import prepare_study_data
    from nld_train.study.study_figures import collect_result
    from nld_train.study.study_table import study_html, study_markdown, study_text
    from nld_train.study.trainings import LOG_NAME, TrainingFailed, expected_minutes, train_runs, untrained_runs

    runs = distinct_runs(list(chains.values()))
    left = untrained_runs(runs)
    minutes = expected_minutes(left, workers)
    print(f"{len(runs)} runs, {len(left)} to train: about {minutes:.0f} minutes on {workers} core(s)", flush=True)
    with held_output(miniature.folder, _give_way):
        prepare_study_data(miniature.folder)
        try:
            train_runs(runs, workers, miniature.folder / LOG_NAME)
        except TrainingFailed as failure:
            print(f"nld: {failure}")
            return FAILED
        except KeyboardInterrupt:
            print("\nnld: stopped; the same command goes on")
            return LEFT_AT_ONCE
        for study in studies:
            last = {name: [chain[-1] for chain in seeded] for name, seeded in chains[study.name].items()}
            result = collect_result(study, last, miniature.steps, seeds)
            print(f"\n{study_text(result)}")
            write_text(miniature.folder / f"{study.name}.md", study_markdown(result))
            write_text(miniature.folder / f"{study.name}.html", study_html(result))
    print(f"\nwrote {miniature.folder}/NAME.md and NAME.html")
    return FINISHED
