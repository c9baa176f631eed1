"""`nld eval likelihood`."""

import argparse


def add_likelihood_parser(evaluations: argparse._SubParsersAction) -> None:
    evaluations.add_parser("likelihood", help="not built yet")
