"""What the command lines of all preparations share."""

import argparse
from collections.abc import Mapping

from data_prep.prepare_text import PreparationOptions

Subparsers = argparse._SubParsersAction  # argparse names no public type for it


def add_command(
    commands: "Subparsers[argparse.ArgumentParser]", name: str, summary: str, detail: str, example: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {detail}",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_options(parser: argparse.ArgumentParser, defaults: PreparationOptions) -> None:
    """The options of every preparation."""
    parser.add_argument(
        "--workers", type=int, default=defaults.workers, metavar="N", help="processes (default: processor cores)"
    )
    parser.add_argument(
        "--max-bad-lines",
        "--max-bad",
        type=int,
        default=defaults.max_bad_lines,
        metavar="K",
        help="broken lines to name and skip before giving up (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--mask-id",
        type=int,
        default=defaults.mask_id,
        metavar="ID",
        help="the recipe's diffusion.mask_token_id, which may be no text (default: %(default)s)",
    )


def not_read(unread: Mapping[str, int]) -> str:
    """What the folders held beside the input, for the summary."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in unread.items())
    return f"; not read in the folders: {kinds}" if kinds else ""
