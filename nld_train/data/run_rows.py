"""The rows of a run's files: text or conversations, for training or validation."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from nld_train.config import RunConfig, require
from nld_train.data.blended_rows import BlendedRows, FileRows, epochs_read
from nld_train.data.chat_packing import open_packings
from nld_train.data.chat_rows import ChatFileRows
from nld_train.data.file_threads import call_in_threads, count_threads
from nld_train.data.manifest import Manifest, parse_blend, read_manifest
from nld_train.data.splits import part_counts, parts_read
from nld_train.data.text_rows import (
    TextFileRows,
    check_text_part,
    count_text_rows,
    epoch_folder,
    epoch_is_kept,
    make_text_parts,
    open_text_parts,
    parts_folder,
)
from nld_train.data.trajectory_rows import TrajectoryRows, open_trajectory_rows
from nld_train.vision_config import VisionConfig

logger = logging.getLogger(__name__)
DRAWN_UP_TO = 1 << 22  # documents; of a larger file a check works with the mean length, and draws no parts
SECONDS_A_DOCUMENT = 0.8e-6  # to draw the parts, shuffle documents and rows, and cut, and to write what is kept
RunParts = Mapping[str, BlendedRows | TrajectoryRows]  # by part, as in `splits.PARTS`


def open_run_rows(run: RunConfig, folder: Path) -> RunParts:
    """The rows of each part that the run reads, with what is kept of them in `folder`, made where it is missing.

    The first process that calls this makes everything that the run will read, so that loaders only read it: let the
    others wait. Raises: UserError where a file has no row for a part.
    """
    if run.sampler is not None:
        return open_trajectory_rows(run)
    files = _chat_files(run, folder) if run.data.chat else _text_files(run, folder)
    weights = [weight for weight, _ in parse_blend(run.data.blend) if weight is not None] or None
    asked = _rows_asked(run)
    if "validation" in files:
        said = describe_repeats(run, [len(file) for file in files["validation"]])
        if said is not None:
            logger.warning("%s", said)
    parts = {part: BlendedRows(of_part, weights, asked[part]) for part, of_part in files.items()}
    for rows in parts.values():
        rows.prepare_epochs()
    return parts


def _rows_asked(run: RunConfig) -> dict[str, range]:
    """The rows of each part. Training goes on where an earlier stage on the same data ended; every evaluation of every
    stage takes row 0 first."""
    return {
        "train": range(run.data.skip_rows, run.data.skip_rows + run.train.iterations * run.train.global_batch),
        "validation": range(run.train.eval_batches * run.train.global_batch),
    }


def describe_first_start(run: RunConfig, folder: Path) -> str | None:
    """One line about the order of text rows that the first start will make and keep in `folder`, None where nothing
    large is left to make. Raises UserError."""
    if run.data.chat or run.sampler is not None:
        return None
    blend = parse_blend(run.data.blend)
    manifests = [read_manifest(prefix) for _, prefix in blend]
    documents = [part_counts(manifest.documents, run.data.split)["train"] for manifest in manifests]
    shares = [count / max(manifest.documents, 1) for count, manifest in zip(documents, manifests, strict=True)]
    rows = [
        max(count_text_rows(int(share * manifest.tokens), run.data.sequence_length), 1)
        for share, manifest in zip(shares, manifests, strict=True)
    ]
    weights = [weight if weight is not None else rows[number] for number, (weight, _) in enumerate(blend)]
    epochs = epochs_read(weights, _rows_asked(run)["train"], rows)
    missing = [
        documents[number]
        for number, (_, prefix) in enumerate(blend)
        for epoch in epochs[number]
        if epoch_is_kept(documents[number], rows[number])
        and not epoch_folder(parts_folder(prefix, run.data, folder), "train", run.data, epoch).is_dir()
    ]
    if not missing:
        return None
    seconds = sum(missing) * SECONDS_A_DOCUMENT / count_threads(len(missing))
    return f"rows of {sum(missing):,} documents are ordered at the first start: about {seconds:,.0f} s"


def _chat_files(run: RunConfig, folder: Path) -> dict[str, list[FileRows]]:
    for _, prefix in parse_blend(run.data.blend):
        check_images_fit(prefix, read_manifest(prefix), run.vision)
    plans = open_packings(run, folder)
    return {
        part: [ChatFileRows(prefix, plan[part].rows, run.data) for prefix, plan in plans.items()]
        for part in parts_read(run)
    }


def _text_files(run: RunConfig, folder: Path) -> dict[str, list[FileRows]]:
    prefixes = [prefix for _, prefix in parse_blend(run.data.blend)]
    opened = call_in_threads([partial(open_text_parts, prefix, run.data, folder) for prefix in prefixes])
    return {
        part: [
            TextFileRows(prefix, parts[part], run.data, place)
            for prefix, (parts, place) in zip(prefixes, opened, strict=True)
        ]
        for part in parts_read(run)
    }


def check_data_parts(prefix: str, manifest: Manifest, run: RunConfig) -> None:
    """Raise UserError where a part of a file that the run reads has no document, or of text no row, and where its
    images are others than the run's."""
    check_images_fit(prefix, manifest, run.vision)
    counts = part_counts(manifest.documents, run.data.split)
    for name in parts_read(run):
        require(
            counts[name] > 0,
            f"{prefix} has {manifest.documents:,} documents, and none of them for {name} "
            f"under data.split={run.data.split}",
            "one or more",
            "give more data or other shares; train.eval_batches=0 needs no validation",
        )
    if not run.data.chat and manifest.documents <= DRAWN_UP_TO:
        parts = make_text_parts(prefix, run.data)
        for name in parts_read(run):
            check_text_part(prefix, parts[name], run.data)


def check_images_fit(prefix: str, manifest: Manifest, vision: VisionConfig | None) -> None:
    """Raise UserError where a file has images and the run has no vision, or expects other tokens or sizes of images.
    Files of text go with every run."""
    images = None if manifest.chat is None else manifest.chat.images
    if images is None:
        return
    require(
        vision is not None,
        f"{prefix} has {images.images:,} images, and the run has no vision section",
        "a recipe with vision=VisionConfig(...) for conversations with images",
        "start from a vision recipe, or give files of text",
    )
    assert vision is not None, "it was required"
    theirs = (*vision.token_ids, vision.patch_size, vision.merge, vision.longest_edge)
    ids = (images.image_token_id, images.break_token_id, images.end_token_id)
    names = ("image_token_id", "break_token_id", "end_token_id", "patch_size", "merge", "longest_edge")
    found = dict(zip(names, (*ids, images.patch_size, images.merge, images.longest_edge), strict=True))
    wrong = [name for (name, value), other in zip(found.items(), theirs, strict=True) if value != other]
    require(
        not wrong,
        f"{prefix} was made with {', '.join(f'{name} {found[name]}' for name in wrong)}",
        ", ".join(f"vision.{name}={value}" for name, value in zip(names, theirs, strict=True) if name in wrong),
        "set vision to what the file was made with, or make the file again with `nld data prepare-chat`",
    )


def estimate_validation_rows(run: RunConfig) -> list[float]:
    """About how many validation rows each file has. Raises UserError."""
    rows: list[float] = []
    for _, prefix in parse_blend(run.data.blend):
        manifest = read_manifest(prefix)
        if run.data.chat or manifest.documents > DRAWN_UP_TO:
            share = part_counts(manifest.documents, run.data.split)["validation"] / max(manifest.documents, 1)
            rows.append(max(share * _full_rows(manifest, run), 1))
        else:
            tokens = make_text_parts(prefix, run.data)["validation"].tokens
            rows.append(count_text_rows(tokens, run.data.sequence_length))
    return rows


def _full_rows(manifest: Manifest, run: RunConfig) -> float:
    """The rows that a file would fill by tokens, or by text where that takes more."""
    images = None if manifest.chat is None else manifest.chat.images
    text = manifest.tokens - (0 if images is None else images.image_tokens)
    return max(manifest.tokens / run.data.sequence_length, text / run.data.noisy_length)


def describe_repeats(run: RunConfig, rows: Sequence[float]) -> str | None:
    """One line where an evaluation reads rows more than once; None where it does not. rows: of each file."""
    evaluated = run.train.eval_batches * run.train.global_batch
    blend = parse_blend(run.data.blend)
    weights = [rows[number] if weight is None else weight for number, (weight, _) in enumerate(blend)]
    times = [weight / sum(weights) * evaluated / have for weight, have in zip(weights, rows, strict=True)]
    most = max(range(len(times)), key=lambda number: times[number])
    if times[most] <= 1:
        return None
    return (
        f"an evaluation takes {evaluated:,} rows; {blend[most][1]} has {rows[most]:,.0f} for validation, "
        f"so each of them is read {times[most]:.2g} times"
    )
