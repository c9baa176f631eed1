"""`nld report`: the losses of runs as a table and a page."""

import argparse


def add_report_parser(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser(
        "report",
        help="draw and tabulate the losses of runs",
        description="Print the table of one or more runs, and write a page with their curves.  Example: nld report "
        "out/demo/stage1_ar out/demo/stage2_joint --data out/demo/data/almanac --html out/demo/report.html",
    )
    report.add_argument("output", nargs="+", help="output folders of `nld train`, in the order they were run")
    report.add_argument("--html", metavar="FILE", help="write the page there")
    report.add_argument("--data", nargs="+", metavar="PREFIX", help="token files to compare with: the unigram entropy")
    report.add_argument(
        "--answers", nargs="+", default=[], metavar="FILE", help="show answers that `nld generate --json FILE` wrote"
    )
    report.add_argument("--eval", nargs="+", default=[], metavar="DIR", help="show what `nld eval` wrote there")
    report.add_argument("--title", default="Training report", help="title of the page (default: %(default)s)")
    report.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> int:
    from pathlib import Path

    from nld_train.data.manifest import unigram_entropy
    from nld_train.files import check_output_file
    from nld_train.report import drafter_figures, sampler_figures
    from nld_train.report.history import read_stages
    from nld_train.report.page import ReportExtras, write_report
    from nld_train.report.stage_table import text_table

    if args.html is not None:
        check_output_file(Path(args.html))
    outputs = [Path(output) for output in args.output]
    stages = read_stages(outputs)
    entropy = unigram_entropy(*args.data) if args.data else None
    print(text_table(stages, entropy))
    print(drafter_figures.drafter_text(stages) + sampler_figures.sampler_text(stages), end="")
    if args.html is not None:
        extras = ReportExtras([Path(one) for one in args.answers], [Path(one) for one in args.eval])
        write_report(outputs, Path(args.html), entropy, args.title, extras)
        print(f"wrote {args.html}")
    return 0
