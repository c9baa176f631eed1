"""Throughput of `nld data prepare-chat`, beside one process of transformers' plain `apply_chat_template`, in one run.

    .venv/bin/python benchmarks/prepare_chat.py            # needs out/demo/tokenizer, which `make demo` trains

Conversations are made of the demo's own questions and answers, 1 to 4 turns each. `apply_chat_template` gives tokens
alone; ours finds what is supervised, checks the text against the template's, keeps what messages spell as text, and
writes files. Both read the same .jsonl. The ways take turns, so that a busy machine slows them alike.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from data_prep.prepare_chat import ChatOptions, prepare_chat
from data_prep.stdlib_chat import write_stdlib_chat

Count = tuple[int, int]  # conversations, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="out/demo/tokenizer", help="default: %(default)s")
    parser.add_argument("--conversations", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = write_conversations(folder, args.conversations)
        cores = len(os.sched_getaffinity(0))
        ways: dict[str, Callable[[], Count]] = {
            "apply_chat_template, one process": plain(source, args.tokenizer),
            **{f"prepare-chat, {n} workers": ours(source, folder, args.tokenizer, n) for n in sorted({1, cores})},
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        counts: dict[str, Count] = {}
        for _ in range(args.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                counts[name] = way()
                seconds[name].append(time.perf_counter() - start)
    assert len(set(counts.values())) == 1, f"different work: {counts}"
    print_table(counts, seconds)


def write_conversations(folder: Path, count: int) -> Path:
    write_stdlib_chat(folder / "pairs.jsonl")
    pairs = [json.loads(line)["messages"] for line in (folder / "pairs.jsonl").read_text().splitlines()]
    draw = random.Random(0)
    path = folder / "conversations.jsonl"
    with path.open("w") as stream:
        for _ in range(count):
            turns = [turn for pair in draw.choices(pairs, k=draw.randint(1, 4)) for turn in pair]
            stream.write(json.dumps({"messages": turns}) + "\n")
    return path


def plain(source: Path, tokenizer: str) -> Callable[[], Count]:
    from transformers import AutoTokenizer  # here, so that the workers of prepare-chat do not import it

    library = AutoTokenizer.from_pretrained(tokenizer)

    def run() -> Count:
        tokens = conversations = 0
        with source.open() as stream:
            for line in stream:
                tokens += len(library.apply_chat_template(json.loads(line)["messages"], return_dict=False))
                conversations += 1
        return conversations, tokens

    return run


def ours(source: Path, folder: Path, tokenizer: str, workers: int) -> Callable[[], Count]:
    def run() -> Count:
        manifest = prepare_chat([source], folder / "out", tokenizer, ChatOptions(workers=workers, overwrite=True))
        return manifest.documents, manifest.tokens

    return run


def print_table(counts: dict[str, Count], seconds: dict[str, list[float]]) -> None:
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    conversations, tokens = next(iter(counts.values()))
    first = next(iter(middle.values()))
    print(f"{conversations:,} conversations, {tokens:,} tokens; median of {len(next(iter(seconds.values())))} rounds")
    print(f"{'':<36}{'seconds':>9}{'conversations/s':>17}{'tokens/s':>12}{'ratio':>7}")
    for name, time_s in middle.items():
        rates = f"{conversations / time_s:>17,.0f}{tokens / time_s:>12,.0f}"
        print(f"{name:<36}{time_s:>9.2f}{rates}{first / time_s:>7.2f}")


if __name__ == "__main__":
    main()
