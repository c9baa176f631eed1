"""`nld eval sol`."""

import argparse


def add_sol_parser(evaluations: argparse._SubParsersAction) -> None:
    evaluations.add_parser("sol", help="not built yet")
