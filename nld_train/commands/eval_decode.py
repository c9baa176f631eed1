"""`nld eval decode`."""

import argparse


def add_decode_parser(evaluations: argparse._SubParsersAction) -> None:
    evaluations.add_parser("decode", help="not built yet")
