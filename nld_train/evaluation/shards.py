"""Shards of an evaluation: their records are put together, and the figures are those of one process."""

import re
from pathlib import Path

from nld_train.errors import require
from nld_train.evaluation.record_file import merge_record_files
from nld_train.evaluation.results import FIGURES, records_path

SHARDED = ("likelihood", "decode", "sol")  # the evaluations that take --shard
SHARD_FILE = re.compile(r"(\w+)\.(\d+)-of-(\d+)\.jsonl")
OF_A_SHARD = ("shard",)  # names of an identity in which shards differ


def find_evaluation_shards(folder: Path) -> dict[str, dict[tuple[int, int], Path]]:
    """kind -> (I, N) -> file of records, of all shards in a folder. Raises: UserError where there is no folder."""
    require(folder.is_dir(), f"no folder {folder}", "--output of the shards", "check the path")
    found: dict[str, dict[tuple[int, int], Path]] = {}
    for path in sorted(folder.iterdir()):
        parts = SHARD_FILE.fullmatch(path.name)
        if parts is not None and parts[1] in FIGURES:
            found.setdefault(parts[1], {})[int(parts[2]), int(parts[3])] = path
    return found


def merge_evaluation_shards(folder: Path, kind: str, overwrite: bool) -> tuple[int, int]:
    """Write KIND.jsonl from KIND.I-of-N.jsonl. Returns: the numbers of records and of shards.

    Raises: UserError where a shard is missing or unfinished, or they are not all of one evaluation.
    """
    shards = find_evaluation_shards(folder).get(kind, {})
    run = f"nld eval {kind} ... --output {folder} --shard"
    require(bool(shards), f"no shards of {kind} in {folder}", f"{kind}.I-of-N.jsonl", f"{run} I/N makes them")
    counts = sorted({count for _, count in shards})
    shown = " and ".join(f"{kind}.*-of-{count}.jsonl" for count in counts)
    require(len(counts) == 1, f"{shown} in {folder}", "the shards of one evaluation", "take the others away")
    (count,) = counts
    foreign = [path.name for (number, _), path in shards.items() if not 1 <= number <= count]
    require(not foreign, f"{foreign[:1]} in {folder}", f"shards 1 to {count}", "take it away")
    missing = [number for number in range(1, count + 1) if (number, count) not in shards]
    do = f"{run} {missing[0]}/{count}" if missing else ""
    require(not missing, f"{folder} lacks shard {missing[:1]} of {count} of {kind}", "all shards", do)
    parts = [shards[number, count] for number in range(1, count + 1)]
    target = records_path(folder, kind)
    return merge_record_files(parts, target, overwrite, same=lambda name: name not in OF_A_SHARD), count
