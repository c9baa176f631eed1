"""`nld data prepare` beside Megatron-LM's tools/preprocess_data.py, in one run: CPU seconds, memory, tokens per second.

    .venv/bin/python benchmarks/prepare.py --tokenizer TOKENIZER --megatron Megatron-LM/tools/preprocess_data.py
    .venv/bin/python benchmarks/prepare.py --tokenizer TOKENIZER          # without that file: the same work, see below

The input is one .jsonl of real text: the sources of the Python standard library, cut into documents of which no two are
the same. Every way works on a short and on a long input; figures without the start are those of the difference, and
those decide for a trillion tokens. Without --megatron, its place is taken by the same work written with the plain
libraries: json, the tokenizers library, and the indexed-dataset builder of the installed megatron-core, with a pool of
processes as that tool has. Every run is a process of its own; CPU seconds and memory are those of it and its children.
The ways take turns, so that a busy machine slows them alike; the load of the machine is printed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from data_prep.stdlib import copy_stdlib
from nld_train.data.token_file import TokenFile

TRILLION = 1e12
DOCUMENT_CHARACTERS = 4000
# The work of Megatron's tool, for where its file is not given: a line is parsed and tokenized in a pool of processes,
# the parent adds the documents to the builder one by one.
PLAIN = """
import json, multiprocessing, os, sys, numpy, torch
sys.path.insert(0, os.getcwd())
from tokenizers import Tokenizer
source, prefix, folder, workers = sys.argv[1:]
def start():
    global library, eos
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    library = Tokenizer.from_file(folder + "/tokenizer.json")
    eos = library.token_to_id(json.load(open(folder + "/tokenizer_config.json"))["eos_token"])
def encode(line):
    return library.encode(json.loads(line)["text"], add_special_tokens=False).ids + [eos]
if __name__ == "__main__":
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    start()
    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=DType.optimal_dtype(library.get_vocab_size()))
    with multiprocessing.Pool(int(workers), start) as pool, open(source) as lines:
        for ids in pool.imap(encode, lines, 32):
            builder.add_document(ids, [len(ids)])
    builder.finalize(prefix + ".idx")
"""


SLOW_MEGABYTES, FAST_MEGABYTES = (3, 9), (40, 160)  # short and long input; engines are not loaded for less than 34


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    tokens: int
    wall: float  # seconds
    cpu: float  # seconds, of the process and its children
    memory: float  # MiB, of the largest process so far


@dataclass(frozen=True)
class Way:
    """A command that makes a token file."""

    name: str
    words: list[str]  # with SOURCE and PREFIX, which stand for the input and the output
    megabytes: tuple[int, int]
    suffix: str = ""  # that the command adds to the output prefix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="a folder; times depend on its vocabulary")
    parser.add_argument("--megatron", metavar="FILE", help="tools/preprocess_data.py of a Megatron-LM checkout")
    parser.add_argument("--rounds", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "plain.py").write_text(PLAIN)
        inputs = {size: write_text_lines(folder, size) for size in {*SLOW_MEGABYTES, *FAST_MEGABYTES}}
        found = [way for workers in ("1", "2") for way in ways(args, folder, workers)]
        costs: dict[tuple[str, int], list[Cost]] = {}
        for _ in range(args.rounds):
            for way in found:
                for length in (0, 1):
                    cost = run_measured(way, inputs[way.megabytes[length]], folder / "out")
                    costs.setdefault((way.name, length), []).append(cost)
        print_costs(found, costs)


def write_text_lines(folder: Path, megabytes: int) -> Path:
    """A .jsonl of so much real text, no document twice."""
    if not (folder / "text").exists():
        copy_stdlib(folder / "text")
    texts = [source.read_text() for source in sorted((folder / "text").rglob("*.py"))]
    path, size, number = folder / f"{megabytes}.jsonl", 0, 0
    with path.open("w") as stream:
        while size < megabytes * 1_000_000:
            text = texts[number % len(texts)]
            for start in range(0, len(text), DOCUMENT_CHARACTERS):
                line = json.dumps({"text": f"# {number}.{start}\n{text[start : start + DOCUMENT_CHARACTERS]}"})
                size += stream.write(line + "\n")
            number += 1
    return path


def ways(args: argparse.Namespace, folder: Path, workers: str) -> list[Way]:
    if args.megatron:
        words = [args.megatron, "--input", "SOURCE", "--output-prefix", "PREFIX", "--workers", workers, "--append-eod"]
        words += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", args.tokenizer]
        first = Way(f"Megatron's tool, {workers} workers", words, SLOW_MEGABYTES, "_text_document")
    else:
        words = [str(folder / "plain.py"), "SOURCE", "PREFIX", args.tokenizer, workers]
        first = Way(f"the same work, {workers} workers", words, SLOW_MEGABYTES)
    ours = ["-m", "nld_train.cli", "data", "prepare", "SOURCE", "--output", "PREFIX", "--tokenizer", args.tokenizer]
    ours += ["--workers", workers, "--overwrite", "--engine"]
    return [
        first,
        Way(f"nld, plain library, {workers} workers", [*ours, "plain"], SLOW_MEGABYTES),
        Way(f"nld, engine auto, {workers} workers", [*ours, "auto"], FAST_MEGABYTES),
    ]


def run_measured(way: Way, source: Path, prefix: Path) -> Cost:
    words = [{"SOURCE": str(source), "PREFIX": str(prefix)}.get(word, word) for word in way.words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    tokens = TokenFile(f"{prefix}{way.suffix}").tokens
    cost = Cost(tokens, time.perf_counter() - start, cpu, after.ru_maxrss / 1024)
    print(
        f"  {way.name}: {tokens:,} tokens, {cost.wall:.1f} s, {cpu:.1f} CPU s, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return cost


def print_costs(found: list[Way], costs: dict[tuple[str, int], list[Cost]]) -> None:
    """Medians over the rounds, with the start of each way and without it."""
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(
        f"{'':<32}{'start, CPU s':>13}{'tokens/CPU s':>14}{'ratio':>7}{'core-hours for 1e12':>21}{'wall, tokens/s':>16}"
    )
    first = 0.0
    for way in found:
        short, long = (costs[way.name, length] for length in (0, 1))
        cpu, wall = (
            [statistics.median(cost.cpu if part == "cpu" else cost.wall for cost in some) for some in (short, long)]
            for part in ("cpu", "wall")
        )
        more = long[0].tokens - short[0].tokens
        rate = more / (cpu[1] - cpu[0])
        first = first or rate  # of the first way, with 1 worker
        start = cpu[0] - short[0].tokens / rate
        print(
            f"{way.name:<32}{start:>13.1f}{rate:>14,.0f}{rate / first:>7.2f}"
            f"{TRILLION / rate / 3600:>21,.0f}{more / (wall[1] - wall[0]):>16,.0f}"
        )
    print(f"largest process: {max(cost.memory for some in costs.values() for cost in some):,.0f} MiB")


if __name__ == "__main__":
    main()
