"""`nld sampler`: the network that judges, for every masked position, whether its prediction is final."""

import argparse
from importlib import import_module

HELP = """\
The trained sampler: a small network beside the frozen model that says which predictions of a denoising step to commit.

  nld sampler collect out/demo/hf --prompts prompts.jsonl --output out/trajectories
  nld sampler merge out/trajectories

`collect` makes the data that it is trained on; `merge` checks what shards of it wrote.
"""
# In their order in the help; the parser of NAME is add_sampler_NAME_parser in nld_train/commands/sampler_NAME.py.
ACTIONS = ("collect", "merge")


def add_sampler_parser(commands: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("sampler", help="the trained sampler", description=HELP, formatter_class=raw)
    actions = parser.add_subparsers(title="actions", required=True, metavar="WHAT", dest="what")
    for name in ACTIONS:
        module = import_module(f"nld_train.commands.sampler_{name}")
        vars(module)[f"add_sampler_{name}_parser"](actions)
