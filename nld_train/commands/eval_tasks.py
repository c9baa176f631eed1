"""`nld eval tasks`."""

import argparse


def add_tasks_parser(evaluations: argparse._SubParsersAction) -> None:
    evaluations.add_parser("tasks", help="not built yet")
