"""The `nld` command. Each command has a file of its own in nld_train/commands; only the one asked for is imported."""

import argparse
import io
import logging
import sys
from importlib import import_module

from nld_train.errors import UserError
from nld_train.exit_status import LEFT_AT_ONCE, REFUSED
from nld_train.files import OF_A_PATH, refused_path
from nld_train.lasting_output import outlive_terminal

# Name -> summary. The parser of NAME is add_NAME_parser in nld_train/commands/NAME.py.
COMMANDS = {
    "train": "train a recipe",
    "data": "make token files from text or conversations, and look into them",
    "convert": "Hugging Face checkpoints in and out",
    "generate": "generate text from a checkpoint folder",
    "eval": "evaluate a checkpoint: likelihood, decoding, speed of light, tasks",
    "sampler": "data for the trained sampler",
    "show": "draw who may see whom",
    "report": "draw and tabulate the losses of runs",
    "study": "try the recipe's choices in miniature",
    "bench": "measure attention, loss or a step",
    "doctor": "check this machine, and what a recipe needs of it",
    "launch": "submit a recipe to a cluster",
    "jobs": "show or cancel the jobs of runs",
    "requeue": "does a job go on? (asked by its script)",
}
# Work that `nld launch NAME` divides over an array of jobs; the others' words are a recipe's. The parser of NAME is
# parse_launch_NAME in nld_train/commands/launch_NAME.py.
LAUNCHED_ARRAYS = ("data", "eval", "sampler")
# Their overrides may stand before, between and after the options, which argparse on its own does not take.
WITH_OVERRIDES = ("train", "launch", "requeue", "doctor")


def command_parser(name: str | None) -> argparse.ArgumentParser:
    """The parser of `nld`, with all of one command and the summaries of the others."""
    top = argparse.ArgumentParser(
        prog="nld",
        description="Train language models that decode left to right, by denoising blocks, and both at once.",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for known, summary in COMMANDS.items():
        if known == name:
            module = import_module(f"nld_train.commands.{name}")
            vars(module)[f"add_{name}_parser"](commands)
        else:
            commands.add_parser(known, help=summary)
    return top


def parse_words(words: list[str]) -> argparse.Namespace:
    """The parsed command line; its `run` is a function from it to an exit status."""
    if words[:1] == ["launch"] and words[1:2] and words[1] in LAUNCHED_ARRAYS:
        module = import_module(f"nld_train.commands.launch_{words[1]}")
        return vars(module)[f"parse_launch_{words[1]}"](words[2:])
    top = command_parser(words[0] if words and words[0] in COMMANDS else None)
    args, rest = top.parse_known_args(words)
    if rest and (args.command not in WITH_OVERRIDES or any(word.startswith("-") for word in rest)):
        top.error(f"unknown arguments: {' '.join(rest)}")
    if rest:
        args.override += rest
    return args


def main() -> int:
    """Run the command line; returns the exit status. User errors are one line on stderr and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what files and terminals spell wrongly is shown, not fatal
    if sys.argv[1:2] == ["train"]:
        outlive_terminal()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_words(sys.argv[1:])
    try:
        return args.run(args)
    except UserError as error:
        print(f"nld: {error}", file=sys.stderr)
        return REFUSED
    except OSError as error:
        if error.errno not in OF_A_PATH or error.filename is None:
            raise
        print(f"nld: {refused_path(error)}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return LEFT_AT_ONCE


if __name__ == "__main__":
    sys.exit(main())
