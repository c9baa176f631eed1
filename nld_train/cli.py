"""The `nld` command."""

import argparse
import logging
import sys

from data_prep.cli import add_data_parser
from nld_train import recipe
from nld_train.convert.cli import add_convert_parser
from nld_train.decode.cli import add_generate_parser
from nld_train.errors import UserError

TRAIN_HELP = """\
Train a recipe: the same command and the same code on one CPU and on many GPUs.

  nld train tiny_stage1_ar                        a name from recipes/, or the path of a recipe file
  nld train tiny_stage1_ar --nproc 2              two ranks on this machine
  nld train tiny_stage1_ar train.iterations=20 output=out/try
  nld train nld_8b_stage2_joint --dry-run         parameters, FLOPs, memory per GPU; starts nothing

A run resumes by itself where its output folder holds a checkpoint of the same run.
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="nld",
        description="Train language models that decode left to right, by denoising blocks, and both at once.",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_train_parser(commands)
    add_data_parser(commands)
    add_convert_parser(commands)
    add_generate_parser(commands)
    add_show_parser(commands)
    add_report_parser(commands)
    return top


def add_train_parser(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train", help="train a recipe", description=TRAIN_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    train.add_argument("recipe", help="recipe name or file; known: " + ", ".join(recipe.names()))
    train.add_argument("override", nargs="*", metavar="key=value", help="settings to change, by dotted key")
    train.add_argument("--nproc", type=int, metavar="N", help="ranks on this machine (default: what the recipe plans)")
    train.add_argument("--dry-run", action="store_true", help="check and print the plan; start nothing")
    train.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> int:
    overrides = list(args.override)
    if args.nproc is not None:
        overrides.append(f"parallel.world_size={args.nproc}")
    run = recipe.load(args.recipe, overrides)
    print(recipe.dump(run, overrides), flush=True)
    if args.dry_run:
        from nld_train.plan.report import dry_run

        print(f"\n{dry_run(run)}")
        return 0
    from nld_train.train.launch import start

    return start(run)


def add_show_parser(commands: argparse._SubParsersAction) -> None:
    show = commands.add_parser("show", help="draw who may see whom")
    pictures = show.add_subparsers(title="pictures", required=True, metavar="PICTURE")
    visibility = pictures.add_parser(
        "visibility",
        help="the visibility of the dual stream",
        description="Draw which positions of [noisy | clean] see which.  Example: nld show visibility --length 8 "
        "--block-size 4 --svg visibility.svg",
    )
    visibility.add_argument("--length", type=int, default=16, help="tokens in the row (default 16)")
    visibility.add_argument("--block-size", type=int, default=4, help="tokens denoised together (default 4)")
    visibility.add_argument("--svg", metavar="FILE", help="write a picture instead of text")
    visibility.set_defaults(run=run_show_visibility)


def run_show_visibility(args: argparse.Namespace) -> int:
    from pathlib import Path

    from nld_train.data.staging import write_text
    from nld_train.dual_stream.layout import Layout
    from nld_train.dual_stream.picture import picture_svg, picture_text

    layout = Layout(args.length, args.block_size, dual=True)
    if args.svg is None:
        print(picture_text(layout))
    else:
        write_text(Path(args.svg), picture_svg(layout))
    return 0


def add_report_parser(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser(
        "report",
        help="draw and tabulate the losses of runs",
        description="Print the table of one or more runs, and write a page with their curves.  Example: nld report "
        "out/demo/stage1_ar out/demo/stage2_joint --data out/demo/data/stdlib --html out/demo/report.html",
    )
    report.add_argument("output", nargs="+", help="output folders of `nld train`, in the order they were run")
    report.add_argument("--html", metavar="FILE", help="write the page there")
    report.add_argument("--data", nargs="+", metavar="PREFIX", help="token files to compare with: the unigram entropy")
    report.add_argument("--answers", metavar="FILE", help="show answers that `nld generate --json FILE` wrote")
    report.add_argument("--title", default="Training report", help="title of the page (default: %(default)s)")
    report.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> int:
    from pathlib import Path

    from nld_train.data.manifest import unigram_entropy
    from nld_train.report.history import read_stages
    from nld_train.report.page import write_report
    from nld_train.report.table import text_table

    outputs = [Path(output) for output in args.output]
    stages = read_stages(outputs)
    entropy = unigram_entropy(*args.data) if args.data else None
    print(text_table(stages, entropy))
    if args.html is not None:
        write_report(
            outputs, Path(args.html), entropy, args.title, None if args.answers is None else Path(args.answers)
        )
        print(f"wrote {args.html}")
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    """The parsed command line. `nld train` takes its overrides before, between and after its options, which argparse
    on its own does not."""
    top = parser()
    args, rest = top.parse_known_args(words)
    if rest and (args.run is not run_train or any(word.startswith("-") for word in rest)):
        top.error(f"unknown arguments: {' '.join(rest)}")
    if rest:
        args.override += rest
    return args


def main() -> int:
    """Run the command line; returns the exit status. User errors are one line on stderr and status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse(sys.argv[1:])
    try:
        return args.run(args)
    except UserError as error:
        print(f"nld: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
