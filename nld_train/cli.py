"""The `nld` command."""

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING

from data_prep.cli import add_data_parser
from nld_train import recipe
from nld_train.bench.cli import add_bench_parser
from nld_train.config import RunConfig, require
from nld_train.convert.cli import add_convert_parser
from nld_train.decode.cli import add_generate_parser
from nld_train.errors import UserError
from nld_train.launch.cli import add_jobs_parser, add_launch_parser, add_requeue_parser

if TYPE_CHECKING:
    import torch

    from nld_train.bench.measure import Alternative

TRAIN_HELP = """\
Train a recipe: the same command and the same code on one CPU and on many GPUs.

  nld train tiny_stage1_ar                        a name from recipes/, or the path of a recipe file
  nld train tiny_stage1_ar --nproc 2              two ranks on this machine
  nld train tiny_stage1_ar train.iterations=20 output=out/try
  nld train nld_8b_sft init=models/NLD-8B         from a Hugging Face folder: imported into OUTPUT/init first
  nld train nld_8b_stage2_joint --dry-run         parameters, FLOPs, memory per GPU; starts nothing
  nld train nld_8b_stage2_joint --meet n0:29500 --nodes 32 --node 0
                                                  on the first of 32 nodes; `nld launch` does this under Slurm
  torchrun --nproc-per-node 2 -m nld_train.cli train tiny_stage1_ar
                                                  under a torchrun of your own: each process is one rank

A run resumes by itself where its output folder holds a checkpoint of the same run. SIGTERM, SIGUSR1, Ctrl-C or a file
OUTPUT/stop let it finish its step, save and leave. Exit status:

  0    finished        75   stopped as asked, saved: the same command goes on
  1    failed          2    refused before it started        130   second Ctrl-C: left without saving
  69   a node failed its check before the start, and is named (on several nodes)
"""
INSPECT_CHAT_HELP = """\
Show one conversation of a chat file: context, supervised tokens, where blocks begin, and one draw of the noise.

  nld data inspect-chat data/chat --tokenizer tokenizer
  nld data inspect-chat data/chat --tokenizer tokenizer --conversation 7 --block-size 16 --html chat7.html

`nld data inspect` shows the manifest and the lengths.
"""
RAW = argparse.RawDescriptionHelpFormatter
DOCTOR_HELP = """\
Check this machine and, with a recipe, everything its run needs, without starting or changing anything.

  nld doctor                                      packages, GPU, Transformer Engine, Slurm, W&B
  nld doctor tiny_stage2_joint                    also: data, tokenizer, init, memory, disk, checkpoints
  nld doctor tiny_stage2_joint --verify           also reads data and checkpoints whole, against their checksums
  nld doctor nld_8b_stage2_joint parallel.world_size=8 --json doctor.json
  srun --ntasks-per-node=1 nld doctor nld_8b_stage1_ar --meet $(hostname):29500
                                                  the nodes of an allocation: GPUs, all-reduce, disks, clocks

ok: as it should be.  note: a run starts, but read this.  FAIL: a run would stop there; then the exit status is 1.
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="nld",
        description="Train language models that decode left to right, by denoising blocks, and both at once.",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_train_parser(commands)
    add_inspect_chat(add_data_parser(commands))
    add_convert_parser(commands)
    add_generate_parser(commands)
    add_show_parser(commands)
    add_report_parser(commands)
    add_bench_parser(commands, megatron_steps)
    add_doctor_parser(commands)
    add_launch_parser(commands, run_launch)
    add_jobs_parser(commands)
    add_requeue_parser(commands)
    return top


def add_train_parser(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train", help="train a recipe", description=TRAIN_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    train.add_argument("recipe", help="recipe name or file; known: " + ", ".join(recipe.names()))
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
    run = recipe.load(args.recipe, overrides)
    as_rank = "TORCHELASTIC_RUN_ID" in os.environ  # one of the processes of a torchrun that is not our own
    if not as_rank or os.environ["RANK"] == "0":
        print(recipe.dump(run, overrides), flush=True)
    if args.dry_run:
        from nld_train.plan.report import dry_run

        print(f"\n{dry_run(run)}")
        return 0
    from nld_train.convert.start import with_imported_init
    from nld_train.train.launch import start
    from nld_train.train.nodes import nodes_of

    if as_rank:
        from nld_train.train.under_torchrun import start_rank

        require(args.meet is None, "--meet under torchrun", "one of the two", "leave --meet away")
        return start_rank(run, with_imported_init)
    nodes = nodes_of(args.meet, args.nodes, args.node, os.environ)
    if nodes.meet:
        from nld_train.launch.gather import gather, party_of
        from nld_train.train.doors import DOORS

        party = party_of(nodes.meet, nodes.count, nodes.here, nodes.ranks(run), nodes.labels)
        status = gather(run, party, [DOORS["data"]], [DOORS["start"]])
        if status is not None:
            return status
    return start(run, with_imported_init, nodes)


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


def add_inspect_chat(commands: argparse._SubParsersAction) -> None:
    """It stands with `nld data`, and shows what data_prep does not know: blocks and noise."""
    inspect = commands.add_parser(
        "inspect-chat", help="show a conversation as it is trained", description=INSPECT_CHAT_HELP, formatter_class=RAW
    )
    inspect.add_argument("prefix", metavar="PREFIX", help="the --output of `nld data prepare-chat`")
    inspect.add_argument("--tokenizer", required=True, metavar="DIR", help="the tokenizer the file was made with")
    inspect.add_argument("--conversation", type=int, default=0, metavar="N", help="which one (default: %(default)s)")
    inspect.add_argument("--block-size", type=int, metavar="B", help="tokens denoised together (default: the family's)")
    inspect.add_argument("--noise-seed", type=int, metavar="S", help="another draw of the noise")
    inspect.add_argument("--html", metavar="FILE", help="write it as a page too")
    inspect.set_defaults(run=run_inspect_chat)


def run_inspect_chat(args: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.console import Console

    from nld_train.config import DiffusionConfig
    from nld_train.data.staging import write_text
    from nld_train.report.conversation import as_html, as_text, look

    given = {"block_size": args.block_size, "noise_seed": args.noise_seed}
    config = DiffusionConfig(**{name: value for name, value in given.items() if value is not None})
    view = look(args.prefix, args.tokenizer, args.conversation, config)
    console = Console(highlight=False)
    console.print(as_text(view, coloured=console.is_terminal and not console.no_color), soft_wrap=True)
    if args.html is not None:
        write_text(Path(args.html), as_html(view))
        print(f"wrote {args.html}")
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
    from nld_train.report import drafter
    from nld_train.report.history import read_stages
    from nld_train.report.page import write_report
    from nld_train.report.table import text_table

    outputs = [Path(output) for output in args.output]
    stages = read_stages(outputs)
    entropy = unigram_entropy(*args.data) if args.data else None
    print(text_table(stages, entropy))
    print(drafter.text(stages), end="")
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


def add_doctor_parser(commands: argparse._SubParsersAction) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check this machine, and what a recipe needs of it",
        description=DOCTOR_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("recipe", nargs="?", help="recipe name or file (default: the machine alone)")
    doctor.add_argument("override", nargs="*", metavar="key=value", help="settings to change, by dotted key")
    doctor.add_argument("--verify", action="store_true", help="read data and checkpoints whole, against checksums")
    doctor.add_argument("--json", metavar="FILE", help="write the findings there too")
    doctor.add_argument(
        "--meet", metavar="HOST:PORT", help="check the nodes of a run instead, as `nld train --meet` does"
    )
    doctor.add_argument("--nodes", type=int, metavar="N", help="with --meet: how many (default: Slurm's count)")
    doctor.add_argument("--node", type=int, metavar="I", help="with --meet: which this is, from 0 (default: Slurm's)")
    doctor.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    from pathlib import Path

    from nld_train.convert.start import check_shape
    from nld_train.data.staging import write_text
    from nld_train.doctor.examine import machine, needs
    from nld_train.doctor.finding import any_fails, summary, table, to_json
    from nld_train.run_folder import is_hugging_face
    from nld_train.train.doors import DOORS
    from nld_train.train.launch import wandb_login

    run = None if args.recipe is None else recipe.load(args.recipe, args.override)
    if args.meet is not None:
        return run_doctor_on_nodes(args, run)
    findings = machine(wandb_login(), run)
    if run is not None:
        imports = run.init is not None and is_hugging_face(Path(run.init))
        findings += needs(run, {**DOORS, "import": check_shape} if imports else DOORS, args.verify)
    print(f"{table(findings)}\n\n{summary(findings)}")
    if args.json is not None:
        write_text(Path(args.json), to_json(findings))
    return 1 if any_fails(findings) else 0


def run_doctor_on_nodes(args: argparse.Namespace, run: RunConfig | None) -> int:
    from nld_train.launch.gather import examine, party_of
    from nld_train.train.doors import DOORS
    from nld_train.train.nodes import nodes_of

    if run is None:
        raise UserError("--meet without a recipe", "the recipe whose nodes are checked", "name it")
    nodes = nodes_of(args.meet, args.nodes, args.node, os.environ)
    party = party_of(nodes.meet, nodes.count, nodes.here, nodes.ranks(run), nodes.labels)
    said, status = examine(run, party, [DOORS["data"]])
    print(said, end="")
    return status


def megatron_steps(run: RunConfig, device: "torch.device") -> "list[Alternative]":
    """What `nld bench step` measures, in this process as the one rank."""
    from nld_train.train.bench_rank import megatron_steps

    return megatron_steps(run, device)


def run_launch(args: argparse.Namespace) -> int:
    from nld_train.launch.script import train_command

    by_nemo = args.executor == "nemo-run"
    require(by_nemo or not args.nemo, f"--nemo, --executor {args.executor}", "--executor nemo-run", "leave one away")
    if args.executor == "slurm" or (by_nemo and args.nemo != "local"):
        return launch_on_slurm(args)
    run = recipe.load(args.recipe, args.override)
    chained = args.after or args.then_export
    require(chained is None, "--after or --then-export here", "--executor slurm or nemo-run", "do one after the other")
    if by_nemo:
        return launch_here_by_nemo(args, run)
    if args.dry_run:
        print(train_command(args.recipe, args.override), end="")
        return 0
    from nld_train.convert.start import with_imported_init
    from nld_train.train.launch import start

    return start(run, with_imported_init)


def launch_here_by_nemo(args: argparse.Namespace, run: RunConfig) -> int:
    from pathlib import Path

    from nld_train.launch.import_nemo import with_nemo
    from nld_train.train.doors import DOORS
    from nld_train.train.folder import stop_file

    nemo = with_nemo(Path(run.output))
    if args.dry_run:
        print(nemo.command_here(run, args.recipe, args.override), end="")
        return 0
    for door in DOORS.values():
        door(run)
    return nemo.run_here(run, args.recipe, args.override, stop_file(run.output))


def launch_on_slurm(args: argparse.Namespace) -> int:
    from pathlib import Path

    from nld_train.launch.import_nemo import with_nemo
    from nld_train.launch.script import export_script, sbatch_script
    from nld_train.launch.site import read_site
    from nld_train.launch.submit import check_export, checked, export_of, newest_job, prepare, submit, submit_export
    from nld_train.train.doors import DOORS

    site = read_site(Path(args.site))
    overrides, after = list(args.override), None
    if args.after is not None:
        after = newest_job(site.folder / args.after)
        overrides.append(f"init={args.after}")
    run = recipe.load(args.recipe, overrides)
    job = prepare(run, args.recipe, overrides, args.nodes, after, site)
    by_nemo = with_nemo(site.folder / run.output).OnSlurm(run, job, site) if args.executor == "nemo-run" else None
    script = by_nemo.script() if by_nemo else sbatch_script(job, site)
    export = export_of(job, args.then_export, site) if args.then_export else None
    if args.dry_run:
        print(script, end="")
        print(export_script(export, site) if export else "", end="")
        return 0
    # The weights to start from are not there before that job has ended.
    doors = [DOORS["data"]] if after else [DOORS["start"], DOORS["data"]]
    checked(run, site, [*doors, check_export] if export else doors)
    number = submit(script, job, site, by_nemo.submit if by_nemo else None)
    print(number)
    if export:
        print(submit_export(export, number, site))
    return 0


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
