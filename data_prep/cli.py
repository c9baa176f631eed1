"""`nld data prepare | merge | prepare-chat | inspect | train-tokenizer | almanac | pictures | stdlib | stdlib-chat`."""

import argparse
from pathlib import Path

from data_prep.almanac import write_almanac
from data_prep.chat_cli import add_prepare_chat
from data_prep.cli_options import Subparsers, add_command, add_options, not_read
from data_prep.inspect_file import inspect_token_file
from data_prep.parts import read_shard
from data_prep.picture_book import write_picture_book
from data_prep.prepare_text import (
    PreparationOptions,
    TextOptions,
    merge_shards,
    plan_work,
    prepare_shard,
    prepare_text,
    refuse_outputs,
)
from data_prep.sources import SHARED_SUFFIXES, SUFFIXES, TEXT_KEY
from data_prep.stdlib import copy_stdlib
from data_prep.stdlib_chat import write_stdlib_chat
from data_prep.text_encoder import AUTO, ENGINES, PLAIN
from data_prep.train_tokenizer import VOCAB_SIZE, train_tokenizer
from nld_train.data.manifest import Manifest
from nld_train.errors import require


def add_data_commands(
    subparsers: "Subparsers[argparse.ArgumentParser]",
) -> "Subparsers[argparse.ArgumentParser]":
    """Register `data` and its commands; each sets `run`, a function from the parsed arguments to an exit status.
    Returns the commands, for more of them."""
    parser = subparsers.add_parser("data", help="make token files from text or conversations, and look into them")
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    add_prepare(commands)
    add_merge(commands)
    add_prepare_chat(commands)
    add_inspect(commands)
    add_train_tokenizer(commands)
    add_almanac(commands)
    add_pictures(commands)
    add_stdlib(commands)
    add_stdlib_chat(commands)
    return commands


def add_prepare(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    defaults = TextOptions()
    parser = add_command(
        commands,
        "prepare",
        "turn text into a token file for training",
        "Writes PREFIX.bin, PREFIX.idx and PREFIX.manifest.json.\n"
        "One document per line of .jsonl, .ndjson and .json; per element of a .json list; per row of .parquet,\n"
        ".arrow, .csv and .tsv. Any other file is one document. .gz, .zst, .bz2 and .xz are unpacked.\n"
        "Text must be UTF-8. Files of folders that are not read are counted by kind. A run that was cut off goes on\n"
        "where it stopped: give the same command again. Until the end, twice the output's size is needed on disk.",
        "nld data prepare corpus/web.jsonl corpus/code --tokenizer tokenizer --output data/mix --workers 16\n"
        "  nld data prepare table.csv --text-key body --tokenizer tokenizer --output data/table\n\n"
        f"taken from folders:\n  {' '.join(SUFFIXES)}",
    )
    parser.add_argument("input", nargs="+", help="a file, or a folder to search for files with a known suffix")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="folder with tokenizer.json")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="where the three files go")
    add_options(parser, defaults)
    parser.add_argument(
        "--text-key",
        default=defaults.text_key,
        metavar="KEY",
        help="field or column that holds the text of a record (default: %(default)s)",
    )
    parser.add_argument(
        "--suffix",
        nargs="+",
        metavar=".EXT",
        help="suffixes to take from folders (default: those of records and of text, see below; "
        f"{', '.join(SHARED_SUFFIXES)} where the first record has the text key)",
    )
    parser.add_argument("--no-eos", action="store_true", help="do not end documents with the tokenizer's eos token")
    parser.add_argument(
        "--engine",
        default=defaults.engine,
        choices=(AUTO, PLAIN, *ENGINES),
        help="what encodes: a fast engine that gives the same ids where one is installed, or the plain library "
        "(default: %(default)s; see docs/data_text.md)",
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="make the parts of share I of N alone; then `nld data merge` puts all together"
    )
    parser.set_defaults(run=run_prepare)


def prepare_options(args: argparse.Namespace) -> TextOptions:
    """The options of a parsed `nld data prepare`. Raises UserError for values out of range."""
    return TextOptions(
        workers=args.workers,
        text_key=args.text_key,
        max_bad_lines=args.max_bad_lines,
        suffixes=tuple(args.suffix) if args.suffix else None,
        append_eos=not args.no_eos,
        engine=args.engine,
        mask_id=args.mask_id,
        overwrite=args.overwrite,
    )


def check_preparation(args: argparse.Namespace) -> None:
    """What a parsed `nld data prepare` would be refused for before it encodes. Raises UserError."""
    refuse_outputs(Path(args.output), args.overwrite)
    plan_work(args.input, args.tokenizer, prepare_options(args))


def run_prepare(args: argparse.Namespace) -> int:
    options = prepare_options(args)
    if args.shard is not None:
        return run_prepare_shard(args, options)
    print_manifest(args.output, prepare_text(args.input, args.output, args.tokenizer, options))
    return 0


def run_prepare_shard(args: argparse.Namespace, options: TextOptions) -> int:
    shard = read_shard(args.shard)
    result = prepare_shard(args.input, args.output, args.tokenizer, options, shard)
    print(
        f"shard {shard} is done: {result.parts:,} parts, {result.documents:,} documents, {result.tokens:,} tokens; "
        f"skipped {result.bad_lines:,} bad lines; {result.missing:,} parts of other shards are missing"
    )
    return 0


def add_merge(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "merge",
        "put the parts of all shards together",
        "The same bytes as one `nld data prepare`.\nNothing but the parts beside the output is read.",
        "nld data prepare corpus --tokenizer tokenizer --output data/mix --shard 1/2\n"
        "  nld data prepare corpus --tokenizer tokenizer --output data/mix --shard 2/2\n"
        "  nld data merge data/mix",
    )
    parser.add_argument("prefix", metavar="PREFIX", help="the --output of the shards")
    defaults = TextOptions()
    parser.add_argument(
        "--workers", type=int, default=defaults.workers, metavar="N", help="processes (default: processor cores)"
    )
    parser.add_argument(
        "--max-bad-lines", type=int, metavar="K", help="of all shards together (default: as many as of one shard)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.set_defaults(run=run_merge)


def run_merge(args: argparse.Namespace) -> int:
    limit = 0 if args.max_bad_lines is None else args.max_bad_lines
    PreparationOptions(workers=args.workers, max_bad_lines=limit)  # checks them
    print_manifest(args.prefix, merge_shards(args.prefix, args.workers, args.max_bad_lines, args.overwrite))
    return 0


def print_manifest(prefix: str, manifest: Manifest) -> None:
    """The summary of a token file that was made."""
    print(
        f"wrote {prefix}.bin, .idx, .manifest.json: {manifest.documents:,} documents, {manifest.tokens:,} tokens, "
        f"{manifest.text_bytes:,} bytes of text; skipped {manifest.bad_lines:,} bad lines, "
        f"{manifest.empty_files:,} empty files{not_read(manifest.unread)}"
    )


def add_inspect(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "inspect",
        "show what a token file holds",
        "Prints the manifest, document lengths and, given the tokenizer, samples.",
        "nld data inspect data/mix --tokenizer tokenizer --samples 5 --verify",
    )
    parser.add_argument("prefix", metavar="PREFIX", help="the --output of `nld data prepare`")
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="decode samples with it, and check that the file was made with it"
    )
    parser.add_argument(
        "--samples", type=int, default=3, metavar="N", help="documents to decode (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="draws the samples (default: %(default)s)")
    parser.add_argument("--verify", action="store_true", help="read the files whole and compare their SHA-256")
    parser.set_defaults(run=run_inspect)


def run_inspect(args: argparse.Namespace) -> int:
    for line in inspect_token_file(args.prefix, args.tokenizer, args.samples, args.seed, args.verify):
        print(line)
    return 0


def add_train_tokenizer(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "train-tokenizer",
        "train a small byte-level BPE",
        "Special ids are those of the published family: bos 1, eos 2,\nchat marks 10 and 11, mask 100.",
        "nld data train-tokenizer corpus/code --output tokenizer --vocab-size 2048",
    )
    parser.add_argument("input", nargs="+", help="a file, or a folder to search for files with a known suffix")
    parser.add_argument("--output", required=True, metavar="DIR", help="the tokenizer folder to write")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, metavar="V", help="tokens (default: %(default)s)")
    parser.add_argument(
        "--text-key",
        default=TEXT_KEY,
        metavar="KEY",
        help="field of a .jsonl line (default: %(default)s)",
    )
    parser.add_argument("--chat-words", action="store_true", help="make the words of the chat template tokens too")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.set_defaults(run=run_train_tokenizer)


def run_train_tokenizer(args: argparse.Namespace) -> int:
    train_tokenizer(args.input, args.output, args.vocab_size, args.text_key, args.overwrite, args.chat_words)
    print(f"wrote {args.output}: a tokenizer of {args.vocab_size:,} tokens")
    return 0


def add_almanac(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "almanac",
        "write the demo's questions and answers on characters, days and months",
        "Facts of this Python's own unicodedata and calendar.\n"
        "text.jsonl and chat.jsonl are trained on; held_out.jsonl and unasked.jsonl hold questions that neither has.",
        "nld data almanac --output out/demo/almanac",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.set_defaults(run=run_almanac)


def run_almanac(args: argparse.Namespace) -> int:
    lines = write_almanac(args.output, args.overwrite)
    print(f"wrote {args.output}: " + ", ".join(f"{name} with {count:,} lines" for name, count in lines.items()))
    return 0


def add_pictures(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "pictures",
        "draw pictures of shapes and words, with questions and answers",
        "What the vision-language demo learns from. chat.jsonl is trained on, text.jsonl is its text for a tokenizer;\n"
        "held_out.jsonl asks about pictures that it does not have.",
        "nld data pictures --output out/demo_vlm/pictures",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    for name, count, what in (("pictures", 12_000, "to train on"), ("asked", 100, "to ask about")):
        parser.add_argument(
            f"--{name}", type=int, default=count, metavar="N", help=f"pictures {what} (default: %(default)s)"
        )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="other pictures (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.set_defaults(run=run_pictures)


def run_pictures(args: argparse.Namespace) -> int:
    require(min(args.pictures, args.asked) >= 1, "fewer than one picture", "1 or more of both", "raise the number")
    write_picture_book(args.output, args.pictures, args.asked, args.seed, args.overwrite)
    print(f"wrote {args.output}: {args.pictures:,} pictures to train on, {args.asked:,} to ask about")
    return 0


def add_stdlib(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "stdlib",
        "copy the sources of the Python standard library",
        "About 10 MB that every machine has.",
        "nld data stdlib --output out/text",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.set_defaults(run=run_stdlib)


def add_stdlib_chat(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "stdlib-chat",
        "make conversations from the Python standard library",
        "Short ones, for a tiny model.\n"
        "The question is a function's signature and the summary of its docstring, the answer its body.",
        "nld data stdlib-chat --output out/stdlib.jsonl",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the .jsonl file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=run_stdlib_chat)


def run_stdlib_chat(args: argparse.Namespace) -> int:
    print(f"wrote {args.output}: {write_stdlib_chat(args.output, args.overwrite):,} conversations")
    return 0


def run_stdlib(args: argparse.Namespace) -> int:
    print(f"wrote {args.output}: {copy_stdlib(args.output, args.overwrite):,} files")
    return 0
