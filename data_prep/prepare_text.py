"""Text in, token file out: PREFIX.bin, PREFIX.idx and PREFIX.manifest.json, or nothing."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from data_prep.encode import ChunkTask, PieceReport, TextJob, encode_chunk
from data_prep.pool import run_ordered
from data_prep.progress_tally import ProgressTally, show_progress
from data_prep.sources import SUFFIXES, TEXT_KEY, cut_into_chunks, find_files
from nld_train.data.manifest import FORMAT_VERSION, SUFFIX, ChatManifest, Manifest, write_manifest
from nld_train.data.token_file import TokenFileSummary, TokenFileWriter, bin_path, idx_path, token_dtype
from nld_train.data.tokenizer import TextTokenizer, end_of_document_id, load_tokenizer
from nld_train.errors import UserError
from nld_train.files import staged_files

logger = logging.getLogger(__name__)
PIECE_BYTES = 1 << 21  # of input per task
NAMED_BAD_LINES = 5  # in the error


@dataclass(frozen=True, kw_only=True)
class PreparationOptions:
    """What every preparation can be told."""

    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))  # processes
    max_bad_lines: int = 0  # skipped before the run is given up
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}", "1 or more", "leave it out for one per processor core")
        if self.max_bad_lines < 0:
            raise UserError(f"--max-bad-lines {self.max_bad_lines}", "0 or more", "use 0 to accept none")


@dataclass(frozen=True, kw_only=True)
class TextOptions(PreparationOptions):
    """How to prepare text."""

    text_key: str = TEXT_KEY
    suffixes: tuple[str, ...] = SUFFIXES  # files taken from folders; a file named itself is always taken
    append_eos: bool = True  # end every document with the tokenizer's eos_token


@dataclass
class PreparationCounts:
    """Counts over the reports so far, and the bad lines by file and line."""

    max_bad_lines: int
    empty_files: int = 0
    text_bytes: int = 0
    bad: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)  # of the bad lines
    lines_before: int = 0  # lines of the current file in earlier pieces

    def add(self, report: PieceReport) -> None:
        """Count a report; reports come in the order of the input. Raises UserError beyond the limit of bad lines."""
        if report.piece.start == 0:
            self.lines_before = 0
        for record in report.bad:
            self.bad.append(f"{report.piece.path}:{self.lines_before + record.line}: {record.problem}")
            self.reasons[record.problem.partition(":")[0]] += 1
        self.lines_before += report.records
        self.text_bytes += report.text_bytes
        self.empty_files += not (report.piece.lines or report.documents or report.bad)
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
    """Turn text files, .jsonl and .parquet files and folders of them into one token file, the same bytes for any number
    of workers.

    Every line or row is one document, every other file is one. Raises UserError for bad input; then, as after any other
    end before the last step, no output name exists.
    """
    prefix = Path(output_prefix)
    tokenizer = load_tokenizer(tokenizer_folder)
    ending = end_of_document_id(tokenizer) if options.append_eos else None
    files = find_files(inputs, options.suffixes)
    suffixes = (".bin", SUFFIX, ".idx")
    job = TextJob(str(tokenizer_folder), tokenizer.fingerprint, ending, options.text_key)
    outcome = PreparationCounts(options.max_bad_lines)
    with (
        staged_files(prefix, suffixes, options.overwrite) as partial,
        show_progress(sum(file.stat().st_size for file in files)) as tally,
    ):
        summary = write_tokens(partial, files, job, tokenizer, options.workers, outcome, tally)
        if summary.documents == 0:
            raise UserError("no document in the input", "at least one text that is not empty", "check the inputs")
        manifest = make_manifest(inputs, len(files), tokenizer, ending, summary, outcome)
        write_manifest(partial, manifest)
    return manifest


def write_tokens(
    partial: Path,
    files: Sequence[Path],
    job: TextJob,
    tokenizer: TextTokenizer,
    workers: int,
    outcome: PreparationCounts,
    tally: ProgressTally,
) -> TokenFileSummary:
    """Encode all files in parallel; join the parts, in the order of the input, as they come."""
    tasks = (
        ChunkTask(job, chunk, f"{partial}-{number}") for number, chunk in enumerate(cut_into_chunks(files, PIECE_BYTES))
    )
    with (
        TokenFileWriter(partial, token_dtype(tokenizer.vocab_size)) as writer,
        closing(run_ordered(encode_chunk, tasks, workers)) as results,
    ):
        for number in count_reports(results, outcome, tally):
            part = f"{partial}-{number}"
            writer.append_file(part)
            bin_path(part).unlink()
            idx_path(part).unlink()
        return writer.finish()


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
        text_bytes=outcome.text_bytes,
        tokenizer_sha256=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        end_of_document_id=ending,
        chat=chat,
        **vars(summary),
    )
