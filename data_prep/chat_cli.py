"""`nld data prepare-chat`."""

import argparse

from data_prep.cli_options import Subparsers, add_command, add_options, not_read
from data_prep.conversations import PAIR_NAMES
from data_prep.image_check import ImageRules
from data_prep.inspect_file import chat_lines, value_text
from data_prep.messages import ROLES
from data_prep.prepare_chat import ChatOptions, prepare_chat
from nld_train.data.image_tokens import USUAL_NAMES, ImageSizes
from nld_train.errors import UserError

CHAT_DETAIL = f"""Writes PREFIX.bin, PREFIX.idx,
PREFIX.supervised.bin (which tokens count) and PREFIX.manifest.json (with what was dropped, and why).

A line of a .jsonl or a row of a .parquet is one conversation, in one of these forms:
  {{"messages": [{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}]}}
  {{"conversations": [{{"from": "human", "value": "..."}}, {{"from": "gpt", "value": "..."}}]}}
  {{"question": "...", "answer": "..."}}, a pair
  {{"images": [...], "texts": [{{"user": "...", "assistant": "..."}}]}}, as FineVision has them
pairs: {PAIR_NAMES}
roles: {", ".join(ROLES)}
beside them: system, history, tools; in a turn: tool_calls, reasoning_content, weight 0 (or train false) for an answer
that is context. A field that is not read is named with its count; docs/data.md has every form as an example.

Images stand in parts, {{"type": "image_url", "image_url": {{"url": a path or a data URL}}}}, or in the row's image or
images, with <image> in its texts where they belong. They are checked and go into PREFIX.images/, each once.

It is written as the tokenizer's chat template writes it; ChatML where the folder has none. Answers, their calls and
their end marks count, all else is context. What a message spells is text, never a control token. What the template
leaves out is said with its count. A run that was cut off goes on where
it stopped: give the same command again. Until the end, twice the output's size is needed on disk."""


def add_prepare_chat(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "prepare-chat",
        "turn conversations into a chat file for training",
        CHAT_DETAIL,
        "nld data prepare-chat chats.jsonl more.parquet --tokenizer tokenizer --output data/chat --max-bad 100",
    )
    parser.add_argument("input", nargs="+", help="a file of records, or a folder to search for them")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="tokenizer folder, with its chat template")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="where the four files go")
    parser.add_argument(
        "--thinking", action="store_true", help="answers continue a prompt with thinking on (default: off)"
    )
    parser.add_argument("--last-turn-only", action="store_true", help="only the last answer of a conversation counts")
    parser.add_argument(
        "--chosen", action="store_true", help="of preferences take the chosen answer; leave out rows with label false"
    )
    parser.add_argument(
        "--allow-losses",
        action="store_true",
        help="take answers too whose reasoning or call the template leaves out, or a tool result before them",
    )
    parser.add_argument(
        "--date", metavar="YYYY-MM-DD", help="what a template with a clock writes (default: the day of the first start)"
    )
    parser.add_argument(
        "--fill-blocks", type=int, default=1, metavar="B", help="end marks behind the last answer, up to whole blocks"
    )
    add_image_options(parser, ImageRules())
    add_options(parser, ChatOptions())
    parser.set_defaults(run=run_prepare_chat)


def add_image_options(parser: argparse.ArgumentParser, rules: ImageRules) -> None:
    """The options of conversations with images."""
    parser.add_argument(
        "--image-folder", metavar="DIR", help="paths of images belong to it (default: the folder of the file with them)"
    )
    parser.add_argument(
        "--image-tokens",
        metavar="NAME,NAME,NAME",
        help=f"control tokens of an image's cells, breaks and end (default: {USUAL_NAMES})",
    )
    for name, value, said in (
        ("patch-size", rules.sizes.patch_size, "pixels of a patch's side"),
        ("merge", rules.sizes.merge, "patches of a side that become one token"),
        ("longest-edge", rules.sizes.longest_edge, "pixels; larger images are made smaller"),
        ("megapixels", rules.megapixels, "the largest image that is decoded"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{said} (default: %(default)s)")


def image_rules(args: argparse.Namespace) -> ImageRules:
    """How images are read, as a parsed `nld data prepare-chat` says. Raises UserError for values out of range."""
    names = None if args.image_tokens is None else tuple(args.image_tokens.split(","))
    if names is not None and len(names) != 3:
        allowed = "three names: of cells, of breaks and of ends"
        raise UserError(f"--image-tokens {args.image_tokens}", allowed, f"write for example {USUAL_NAMES}")
    return ImageRules(
        names=names,
        sizes=ImageSizes(args.patch_size, args.merge, args.longest_edge),
        megapixels=args.megapixels,
        folder=args.image_folder,
    )


def run_prepare_chat(args: argparse.Namespace) -> int:
    options = ChatOptions(
        workers=args.workers,
        max_bad_lines=args.max_bad_lines,
        thinking=args.thinking,
        last_turn_only=args.last_turn_only,
        chosen=args.chosen,
        allow_losses=args.allow_losses,
        date=args.date,
        images=image_rules(args),
        fill_blocks=args.fill_blocks,
        mask_id=args.mask_id,
        overwrite=args.overwrite,
    )
    manifest = prepare_chat(args.input, args.output, args.tokenizer, options)
    chat = manifest.chat
    assert chat is not None, "prepare_chat writes chat files"
    print(
        f"wrote {args.output}.bin, .idx, .supervised.bin, .manifest.json: {chat.conversations:,} conversations, "
        f"{manifest.tokens:,} tokens, {chat.supervised_tokens / manifest.tokens:.1%} of them supervised; "
        f"dropped {manifest.bad_lines:,} ({value_text(chat.dropped)}){not_read(manifest.unread)}"
    )
    for line in chat_lines(chat):
        print(line)
    return 0
