"""`nld show`: pictures of what the model sees."""

import argparse


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

    from nld_train.dual_stream.picture import visibility_svg, visibility_text
    from nld_train.dual_stream.row_layout import RowLayout
    from nld_train.files import check_output_file, write_text

    layout = RowLayout(args.length, args.block_size, dual=True)
    if args.svg is None:
        print(visibility_text(layout))
    else:
        check_output_file(Path(args.svg))
        write_text(Path(args.svg), visibility_svg(layout))
    return 0
