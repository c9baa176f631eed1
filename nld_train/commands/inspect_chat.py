"""`nld data inspect-chat`: it stands with `nld data`, and shows what data_prep does not know: blocks and noise."""

import argparse

INSPECT_CHAT_HELP = """\
Show one conversation of a chat file: context, supervised tokens, where blocks begin, and one draw of the noise.

  nld data inspect-chat data/chat --tokenizer tokenizer
  nld data inspect-chat data/chat --tokenizer tokenizer --conversation 7 --block-size 16 --html chat7.html

`nld data inspect` shows the manifest and the lengths.
"""


def add_inspect_chat_parser(commands: argparse._SubParsersAction) -> None:
    inspect = commands.add_parser(
        "inspect-chat",
        help="show a conversation as it is trained",
        description=INSPECT_CHAT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    from nld_train.files import check_output_file, write_text
    from nld_train.report.conversation_view import conversation_html, conversation_text, view_conversation

    if args.html is not None:
        check_output_file(Path(args.html))
    given = {"block_size": args.block_size, "noise_seed": args.noise_seed}
    config = DiffusionConfig(**{name: value for name, value in given.items() if value is not None})
    view = view_conversation(args.prefix, args.tokenizer, args.conversation, config)
    console = Console(highlight=False)
    console.print(conversation_text(view, coloured=console.is_terminal and not console.no_color), soft_wrap=True)
    if args.html is not None:
        write_text(Path(args.html), conversation_html(view))
        print(f"wrote {args.html}")
    return 0
