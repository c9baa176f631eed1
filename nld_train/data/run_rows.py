"""The rows of a run's files: text or conversations, for training or validation."""

from pathlib import Path

from nld_train.config import RunConfig
from nld_train.data.blended_rows import BlendedRows, FileRows
from nld_train.data.chat_packing import open_packings
from nld_train.data.chat_rows import ChatFileRows
from nld_train.data.manifest import parse_blend
from nld_train.data.splits import parts_read
from nld_train.data.text_rows import TextFileRows, open_text_parts

RunParts = dict[str, BlendedRows]  # by part, as in `splits.PARTS`


def open_run_rows(run: RunConfig, folder: Path) -> RunParts:
    """The rows of each part that the run reads, with what is kept of them in `folder`, made where it is missing.

    The first process that calls this makes everything that the run will read, so that loaders only read it: let the
    others wait. Raises: UserError where a file has no row for a part.
    """
    files = _chat_files(run, folder) if run.data.chat else _text_files(run, folder)
    weights = [weight for weight, _ in parse_blend(run.data.blend) if weight is not None] or None
    counts = {
        "train": run.train.iterations * run.train.global_batch,
        "validation": run.train.eval_batches * run.train.global_batch,
    }
    parts = {part: BlendedRows(of_part, weights, count=counts[part]) for part, of_part in files.items()}
    for rows in parts.values():
        rows.prepare_epochs()
    return parts


def _chat_files(run: RunConfig, folder: Path) -> dict[str, list[FileRows]]:
    length, seed = run.data.sequence_length, run.data.shuffle_seed
    plans = open_packings(run, folder)
    return {
        part: [ChatFileRows(prefix, plan[part].rows, length, seed) for prefix, plan in plans.items()]
        for part in parts_read(run)
    }


def _text_files(run: RunConfig, folder: Path) -> dict[str, list[FileRows]]:
    opened = [(prefix, *open_text_parts(prefix, run.data, folder)) for _, prefix in parse_blend(run.data.blend)]
    return {
        part: [TextFileRows(prefix, parts[part], run.data, place) for prefix, parts, place in opened]
        for part in parts_read(run)
    }
