"""The files of an evaluation's output folder: records (KIND.jsonl), figures (KIND.json), and the page of them all."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from nld_train.config import require
from nld_train.data.token_file import file_sha256
from nld_train.errors import UserError
from nld_train.evaluation.prompt_file import EvalPrompt
from nld_train.evaluation.record_file import Record, read_records
from nld_train.files import write_text

# Kind -> FILE.NAME in nld_train/evaluation of the function from (identity, records) to the figures, JSON values. It is
# pure, so that figures of merged shards are those of one process.
FIGURES = {
    "likelihood": "likelihood_figures.likelihood_figures",
    "decode": "decode_figures.decode_figures",
    "sol": "oracle_figures.oracle_figures",
    "tasks": "task_figures.task_figures",
}
EvaluationFigures = Callable[[Mapping[str, Any], Sequence[Record]], dict[str, Any]]


def records_path(folder: Path, kind: str, shard: tuple[int, int] | None = None) -> Path:
    """Where the records of a kind, or of a shard of it, stand."""
    return folder / (f"{kind}.jsonl" if shard is None else f"{kind}.{shard[0]}-of-{shard[1]}.jsonl")


def write_figures(folder: Path, kind: str) -> dict[str, Any]:
    """Write KIND.json from the records in KIND.jsonl. Returns: the figures. Raises: UserError."""
    identity, records = read_records(records_path(folder, kind))
    file, _, name = FIGURES[kind].partition(".")
    compute: EvaluationFigures = vars(import_module(f"nld_train.evaluation.{file}"))[name]
    figures = compute(identity, records)
    write_text(folder / f"{kind}.json", json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return figures


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """ "2/4" as (2, 4). Raises: UserError."""
    if text is None:
        return None
    try:
        number, count = map(int, text.split("/"))
    except ValueError:
        raise UserError(f"--shard {text}", "I/N, such as 2/4", "correct it") from None
    require(1 <= number <= count, f"--shard {text}", "I from 1 to N", "correct it")
    return number, count


def shard_prompts(prompts: Sequence[EvalPrompt], shard: tuple[int, int] | None) -> list[EvalPrompt]:
    """Every Nth prompt from the Ith on; all of them without a shard."""
    return list(prompts) if shard is None else list(prompts[shard[0] - 1 :: shard[1]])


def images_digest(images: Sequence[Path]) -> str:
    """SHA-256 of the digests of image files, in their order."""
    return hashlib.sha256("".join(map(file_sha256, images)).encode()).hexdigest()


def prompts_identity(path: Path, categories: Sequence[str]) -> dict[str, Any]:
    """What says which prompts were answered."""
    return {"prompts": path.name, "prompts_sha256": file_sha256(path), "categories": sorted(categories)}
