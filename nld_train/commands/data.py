"""`nld data`: data_prep's commands, and the one that shows a conversation as it is trained."""

import argparse

from data_prep import cli
from nld_train.commands.inspect_chat import add_inspect_chat_parser


def add_data_parser(commands: argparse._SubParsersAction) -> None:
    add_inspect_chat_parser(cli.add_data_commands(commands))
