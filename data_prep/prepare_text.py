"""Text in, token file out: PREFIX.bin, PREFIX.idx and PREFIX.manifest.json, or nothing."""

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from data_prep.encode import REPORTS, ChunkTask, PieceReport, TextJob, finish_text_part, read_part_reports
from data_prep.join import join_token_files
from data_prep.parts import (
    WORK,
    Shard,
    Work,
    opened_parts,
    part_prefix,
    parts_folders,
    parts_of_shard,
    read_work,
    unfinished_parts,
)
from data_prep.pool import run_ordered
from data_prep.progress_tally import ProgressTally, show_progress
from data_prep.sources import SUFFIXES, TEXT_KEY, FilePiece, cut_into_chunks, search_inputs
from data_prep.text_encoder import AUTO, choose_engine
from nld_train.data.manifest import FORMAT_VERSION, SUFFIX, ChatManifest, Manifest, write_manifest
from nld_train.data.token_file import TokenFileSummary, token_dtype
from nld_train.data.tokenizer import MASK_ID, TextTokenizer, check_mask_id, end_of_document_id, load_tokenizer
from nld_train.errors import UserError
from nld_train.files import full_disk_refused, publish_files, refuse_existing

logger = logging.getLogger(__name__)
PIECE_BYTES = 1 << 21  # of input per part, the least
LARGEST_PIECE_BYTES = 1 << 28
MOST_PARTS = 4096  # with the least bytes each; a larger input has larger parts
OUTPUTS = (".bin", SUFFIX, ".idx")
NAMED_BAD_LINES = 5  # in the error


@dataclass(frozen=True, kw_only=True)
class PreparationOptions:
    """What every preparation can be told."""

    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))  # processes
    max_bad_lines: int = 0  # skipped before the run is given up
    overwrite: bool = False
    mask_id: int = MASK_ID  # checked to be no text; the recipe's diffusion.mask_token_id

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}", "1 or more", "leave it out for one per processor core")
        if self.max_bad_lines < 0:
            raise UserError(f"--max-bad-lines {self.max_bad_lines}", "0 or more", "use 0 to accept none")


@dataclass(frozen=True, kw_only=True)
class TextOptions(PreparationOptions):
    """How to prepare text."""

    text_key: str = TEXT_KEY
    # Files taken from folders; a file named itself is always taken. None: SUFFIXES, and what else has the text key
    suffixes: tuple[str, ...] | None = None
    append_eos: bool = True  # end every document with the tokenizer's eos_token
    engine: str = AUTO  # what encodes; the tokens do not depend on it


@dataclass(frozen=True)
class ShardResult:
    """What one shard has made."""

    parts: int
    documents: int
    tokens: int
    bad_lines: int
    missing: int  # parts that are still to be made, by other shards


@dataclass
class PreparationCounts:
    """Counts over the reports so far, and the bad lines by file and line."""

    max_bad_lines: int
    unread: dict[str, int] = field(default_factory=dict)  # in the input folders: kind -> how many
    empty_files: int = 0
    text_bytes: int = 0
    bad: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)  # of the bad lines
    lines_before: int = 0  # lines of the current file in earlier pieces
    place: tuple[str, int] = ("", 0)  # file and byte where the next piece is expected
    first_byte: int = 0  # where the pieces of the current file began: a shard may begin within a file

    def add(self, report: PieceReport) -> None:
        """Count a report; reports come in the order of the input. Raises UserError beyond the limit of bad lines."""
        piece = report.piece
        if (piece.path, piece.start) != self.place or piece.start == 0:
            self.lines_before, self.first_byte = 0, piece.start
        self.place = (piece.path, piece.end)
        behind = f" behind byte {self.first_byte}" if self.first_byte else ""
        for record in report.bad:
            self.bad.append(f"{piece.path}:{self.lines_before + record.line}{behind}: {record.problem}")
            self.reasons[record.problem.partition(":")[0]] += 1
        self.lines_before += report.records
        self.text_bytes += report.text_bytes
        self.empty_files += not (report.piece.holds_records or report.documents or report.bad)
        if len(self.bad) > self.max_bad_lines:
            raise UserError(
                f"more than {self.max_bad_lines} bad lines, the first: {'; '.join(self.bad[:NAMED_BAD_LINES])}",
                "as many as --max-bad-lines says",
                "repair the input, or raise --max-bad-lines to skip them",
            )
        for line in self.bad[len(self.bad) - len(report.bad) :]:
            logger.warning("skipped %s", line)


def prepare_text(
    inputs: Sequence[str | Path], output_prefix: str | Path, tokenizer_folder: str | Path, options: TextOptions
) -> Manifest:
    """Turn texts, files of records and folders of them into one token file, the same bytes for any number of workers,
    of interruptions and of shards.

    Every line, value or row is one document, every other file is one. Raises UserError for bad input; then, as after
    any other end before the last step, no output name exists, and parts that are finished stay for the next try.
    """
    prefix = Path(output_prefix)
    refuse_outputs(prefix, options.overwrite)
    work, chunks = plan_work(inputs, tokenizer_folder, options)
    with opened_parts(prefix, work.key, None) as folder:
        work.save(folder)
        outcome = PreparationCounts(options.max_bad_lines, work.unread)
        _make_parts(work.job, dict(enumerate(chunks)), folder, options.workers, outcome)
        return _publish_parts(prefix, folder, work, outcome, options.workers)


def prepare_shard(
    inputs: Sequence[str | Path],
    output_prefix: str | Path,
    tokenizer_folder: str | Path,
    options: TextOptions,
    shard: Shard,
) -> ShardResult:
    """Make the parts of one shard; `merge_shards` puts those of all shards together. Raises UserError as `prepare`."""
    prefix = Path(output_prefix)
    refuse_outputs(prefix, options.overwrite)
    work, chunks = plan_work(inputs, tokenizer_folder, options)
    chosen = parts_of_shard([sum(piece.size for piece in chunk) for chunk in chunks], shard)
    with opened_parts(prefix, work.key, shard) as folder:
        work.save(folder)
        outcome = PreparationCounts(options.max_bad_lines, work.unread)
        tally = _make_parts(work.job, {part: chunks[part] for part in chosen}, folder, options.workers, outcome)
        return ShardResult(
            len(chosen), tally.documents, tally.tokens, len(outcome.bad), len(unfinished_parts(folder, work))
        )


def merge_shards(
    output_prefix: str | Path, workers: int, max_bad_lines: int | None = None, overwrite: bool = False
) -> Manifest:
    """Put the parts of all shards together: the same bytes as one `prepare`. Nothing but the parts is read.

    max_bad_lines: of all shards together; None: as many as one shard was allowed. Raises UserError where a part is
    missing.
    """
    prefix = Path(output_prefix)
    refuse_outputs(prefix, overwrite)
    found = [folder for folder in parts_folders(prefix) if (folder / WORK).is_file()]
    if len(found) != 1:
        there = ", ".join(map(str, found)) or "none"
        got = f"{len(found)} folders of parts beside {prefix}: {there}"
        raise UserError(got, "the parts of one preparation", "run `nld data prepare --shard`, or remove the old ones")
    work = read_work(found[0])
    with opened_parts(prefix, work.key, None) as folder:
        missing = unfinished_parts(folder, work)
        if missing:
            raise UserError(
                f"{len(missing)} of {work.parts} parts of {prefix} are missing, the first is part {missing[0]}",
                "the parts of every shard",
                "give the same command again for each shard that has not ended",
            )
        outcome = PreparationCounts(work.max_bad_lines if max_bad_lines is None else max_bad_lines, work.unread)
        for part in range(work.parts):
            for report in read_part_reports(part_prefix(folder, part)):
                outcome.add(report)
        return _publish_parts(prefix, folder, work, outcome, workers)


def plan_work(
    inputs: Sequence[str | Path], tokenizer_folder: str | Path, options: TextOptions
) -> tuple[Work, list[tuple[FilePiece, ...]]]:
    """What is to be done, and the input of every part. Raises UserError."""
    tokenizer = load_tokenizer(tokenizer_folder)
    check_mask_id(tokenizer, options.mask_id, "--mask-id")
    ending = end_of_document_id(tokenizer) if options.append_eos else None
    found = search_inputs(inputs, options.suffixes or SUFFIXES, None if options.suffixes else options.text_key)
    size = part_bytes(sum(path.stat().st_size for path in found.files))
    engine = choose_engine(tokenizer, options.engine, sum(path.stat().st_size for path in found.files))
    job = TextJob(str(Path(tokenizer_folder).resolve()), tokenizer.fingerprint, ending, options.text_key, engine)
    chunks = list(cut_into_chunks(found.files, size))
    work = Work(
        key=_work_key(job, found.files, size),
        sources=[Path(name).resolve().name for name in inputs],
        files=len(found.files),
        unread=found.unread,
        parts=len(chunks),
        job=job,
        vocab_size=tokenizer.vocab_size,
        max_bad_lines=options.max_bad_lines,
    )
    return work, chunks


def part_bytes(total: int) -> int:
    """Bytes of input per part: as few as PIECE_BYTES, more for an input that would have more than MOST_PARTS."""
    size = PIECE_BYTES
    while total > size * MOST_PARTS and size < LARGEST_PIECE_BYTES:
        size *= 2
    return size


def _work_key(job: TextJob, files: Sequence[Path], size: int) -> str:
    """Names everything that the parts depend on, and what encodes them: another key, other parts."""
    seen = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    known = (job.tokenizer_sha256, job.end_of_document_id, job.text_key, job.engine)
    content = (FORMAT_VERSION, version("nld-train"), size, known, seen)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def refuse_outputs(prefix: Path, overwrite: bool) -> None:
    """Raise UserError where a file of the output is there and shall stay."""
    if not overwrite:
        refuse_existing([Path(f"{prefix}{suffix}") for suffix in OUTPUTS])


def _make_parts(
    job: TextJob, chunks: Mapping[int, tuple[FilePiece, ...]], folder: Path, workers: int, outcome: PreparationCounts
) -> ProgressTally:
    """Make every one of these parts that is not there. Raises UserError beyond the limit of bad lines."""
    tasks = [ChunkTask(job, chunk, str(part_prefix(folder, part))) for part, chunk in chunks.items()]
    done = sum(Path(f"{task.prefix}{REPORTS}").is_file() for task in tasks)
    if done:
        logger.info("going on: %d of %d parts are finished already", done, len(tasks))
    size = sum(piece.size for task in tasks for piece in task.chunk)
    with show_progress(size) as tally, closing(run_ordered(finish_text_part, tasks, workers)) as results:
        for _ in count_reports(results, outcome, tally):
            pass
    return tally


def _publish_parts(prefix: Path, folder: Path, work: Work, outcome: PreparationCounts, workers: int) -> Manifest:
    """Put the parts together, give the files their names, and remove the parts."""
    partial = folder / "joined"
    prefixes = [part_prefix(folder, part) for part in range(work.parts)]
    with full_disk_refused(prefix.parent):
        summary = join_token_files(partial, prefixes, token_dtype(work.vocab_size), workers)
        if summary.documents == 0:
            shutil.rmtree(folder)
            raise UserError("no document in the input", "at least one text that is not empty", "check the inputs")
        manifest = _text_manifest(work, summary, outcome)
        write_manifest(partial, manifest)
    publish_files(partial, prefix, OUTPUTS)
    shutil.rmtree(folder)
    return manifest


def _text_manifest(work: Work, summary: TokenFileSummary, outcome: PreparationCounts) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        tool_version=version("nld-train"),
        sources=work.sources,
        files=work.files,
        empty_files=outcome.empty_files,
        bad_lines=len(outcome.bad),
        unread=work.unread,
        text_bytes=outcome.text_bytes,
        tokenizer_sha256=work.job.tokenizer_sha256,
        vocab_size=work.vocab_size,
        end_of_document_id=work.job.end_of_document_id,
        **vars(summary),
    )


def count_reports(
    results: Iterable[tuple[PieceReport, ...]], outcome: PreparationCounts, tally: ProgressTally
) -> Iterator[int]:
    """Count the reports of parts as they come, in order; yields the number of each part. Raises UserError beyond the
    limit of bad lines."""
    for number, reports in enumerate(results):
        for report in reports:
            outcome.add(report)
            tally.add(report.piece.size, report.documents, report.tokens)
        yield number


def make_manifest(
    inputs: Sequence[str | Path],
    files: int,
    tokenizer: TextTokenizer,
    ending: int | None,
    summary: TokenFileSummary,
    outcome: PreparationCounts,
    chat: ChatManifest | None = None,
) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        tool_version=version("nld-train"),
        sources=[Path(name).resolve().name for name in inputs],
        files=files,
        empty_files=outcome.empty_files,
        bad_lines=len(outcome.bad),
        unread=outcome.unread,
        text_bytes=outcome.text_bytes,
        tokenizer_sha256=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        end_of_document_id=ending,
        chat=chat,
        **vars(summary),
    )
