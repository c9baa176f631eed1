"""The ids of a fast engine beside those of the tokenizers library, on all text of some folders: no sample, every text.

    .venv/bin/python benchmarks/engine_ids.py --tokenizer TOKENIZER --gigabytes 1 /usr/share /usr/include .venv

A text is a file that is UTF-8 without a zero byte, of at most 16 MB; a file with the bytes of an earlier one is left
out. Links are not followed. A difference is printed with its file, and the exit status is then 1.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.text_encoder import ENGINES, PlainEncoder, TextEncoder, choose_engine, load_encoder
from nld_train.data.tokenizer import load_tokenizer

LARGEST_BYTES = 16_000_000
BATCH_BYTES = 4_000_000
SAID_BYTES = 50_000_000  # between two lines about the progress


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--tokenizer", required=True, help="a folder with tokenizer.json")
    parser.add_argument("--engine", default=ENGINES[0], help="default: %(default)s")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="where to stop; default: %(default)s")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.tokenizer)
    engine = load_encoder(tokenizer, choose_engine(tokenizer, args.engine, 0))
    plain = PlainEncoder(tokenizer)
    files = size = said = tokens = different = 0
    seconds = {"engine": 0.0, "plain": 0.0}
    for batch in batches(args.folders):
        texts = [text for _, text in batch]
        found, known = (
            timed_ids(seconds, name, encoder, texts) for name, encoder in (("engine", engine), ("plain", plain))
        )
        wrong = [
            path
            for (path, _), mine, theirs in zip(batch, found, known, strict=True)
            if not np.array_equal(mine, theirs)
        ]
        for path in wrong:
            print(f"DIFFERENT: {path}", flush=True)
        files, different = files + len(batch), different + len(wrong)
        size += sum(len(text.encode()) for text in texts)
        tokens += sum(row.size for row in known)
        if size - said >= SAID_BYTES or size >= args.gigabytes * 1e9:
            said = size
            print(
                f"{files:,} files, {size:,} bytes, {tokens:,} tokens, {different} different; CPU seconds {seconds}",
                flush=True,
            )
        if size >= args.gigabytes * 1e9:
            break
    print(f"end: {files:,} files, {size:,} bytes, {tokens:,} tokens, {different} different; CPU seconds {seconds}")
    return int(different > 0)


def timed_ids(seconds: dict[str, float], name: str, encoder: TextEncoder, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids [n] of each text; the CPU seconds of it are added under `name`."""
    start = time.process_time()
    ids, counts = encoder.encode_texts(texts)
    seconds[name] += time.process_time() - start
    return np.split(ids, np.cumsum(counts)[:-1])


def batches(folders: Sequence[str]) -> Iterator[list[tuple[Path, str]]]:
    """Distinct texts of the folders with their files, a few MB at a time."""
    batch: list[tuple[Path, str]] = []
    size = 0
    for path, text in distinct_texts(folders):
        batch.append((path, text))
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def distinct_texts(folders: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Every text of the folders once, with its file."""
    seen: set[bytes] = set()
    for folder in folders:
        for place, inner, names in os.walk(folder):
            inner.sort()
            for path in (Path(place, name) for name in sorted(names)):
                if path.is_symlink() or not path.is_file() or not 0 < path.stat().st_size <= LARGEST_BYTES:
                    continue
                data = path.read_bytes()
                digest = hashlib.sha256(data).digest()
                if b"\0" in data or digest in seen:
                    continue
                seen.add(digest)
                try:
                    yield path, data.decode("utf-8")
                except UnicodeDecodeError:
                    continue


if __name__ == "__main__":
    sys.exit(main())
