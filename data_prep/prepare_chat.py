"""Conversations in, chat file out: PREFIX.bin, .idx, .supervised.bin and .manifest.json, or nothing.

Parts are kept in a hidden folder beside the output until all are there, so that a run that was cut off goes on.
"""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_prep.encode import REPORTS, ChunkTask, PieceReport
from data_prep.encode_chat import ChatJob, ChatReport, finish_part
from data_prep.file_forms import RECORD_SUFFIXES, split_suffix
from data_prep.image_check import ImageRules
from data_prep.image_shards import join_images, publish_images
from data_prep.parts import opened_parts
from data_prep.pool import run_ordered
from data_prep.prepare_text import PreparationCounts, PreparationOptions, count_reports, make_manifest
from data_prep.progress_tally import show_progress
from data_prep.sources import LINES, Found, cut_into_chunks, search_inputs
from nld_train.data import image_store, supervision
from nld_train.data import manifest as manifest_file
from nld_train.data.chat_encoder import ChatEncoder, load_chat_encoder
from nld_train.data.chat_template import check_day
from nld_train.data.manifest import FORMAT_VERSION, ChatManifest, Manifest, write_manifest
from nld_train.data.supervision import SupervisionWriter
from nld_train.data.token_file import TokenFileSummary, TokenFileWriter, read_token_index, token_dtype
from nld_train.data.tokenizer import begin_of_text_id, check_mask_id, load_tokenizer
from nld_train.errors import UserError
from nld_train.files import refuse_existing, staged_files, write_text

logger = logging.getLogger(__name__)
PIECE_BYTES = 1 << 21  # of input per part
MOST_FILLED = 4096  # tokens of a block
DATE = "date"  # in the folder of the parts: what a template with a clock is told
SUFFIXES = (".bin", supervision.SUFFIX, manifest_file.SUFFIX, ".idx")


@dataclass(frozen=True, kw_only=True)
class ChatOptions(PreparationOptions):
    """How to prepare conversations."""

    thinking: bool = False  # given to the chat template as enable_thinking
    last_turn_only: bool = False  # only the last answer of a conversation is supervised
    chosen: bool = False  # of preferences, the better answer; bad rows are left out
    allow_losses: bool = False  # also answers that lost their reasoning, a call, or a tool result they rest on
    fill_blocks: int = 1  # tokens: answers are filled with end marks to whole blocks of so many
    images: ImageRules = ImageRules()
    date: str | None = None  # YYYY-MM-DD, for a template with a clock; None: the day on which the preparation began

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.fill_blocks <= MOST_FILLED:
            do = "give the recipe's diffusion.block_size"
            raise UserError(f"--fill-blocks {self.fill_blocks}", f"1 to {MOST_FILLED}", do)


@dataclass
class ChatOutcome(PreparationCounts):
    """Counts over the reports so far, with what there is to say of the conversations."""

    unread_fields: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)  # of images

    def add(self, report: PieceReport) -> None:
        """Count a report. Raises UserError beyond the limit of bad lines."""
        super().add(report)
        assert isinstance(report, ChatReport), "the parts of chat files have reports of their own"
        for total, found in (
            (self.unread_fields, report.unread), (self.losses, report.losses), (self.left_out, report.left_out),
            (self.converted, report.converted),
        ):  # fmt: skip
            total.update(found)


def prepare_chat(
    inputs: Sequence[str | Path], output_prefix: str | Path, tokenizer_folder: str | Path, options: ChatOptions
) -> Manifest:
    """Turn .jsonl and .parquet files, or folders of them, into one chat file, the same bytes for any number of workers
    and of interruptions.

    Every line or row is one conversation and becomes one document. Raises UserError for bad input; then, as after any
    other end before the last step, no output name exists.
    """
    prefix = Path(output_prefix)
    if not options.overwrite:
        refuse_existing([Path(f"{prefix}{suffix}") for suffix in (*SUFFIXES, image_store.SUFFIX)])
    encoder = load_chat_encoder(
        load_tokenizer(tokenizer_folder),
        options.thinking,
        options.last_turn_only,
        options.allow_losses,
        None if options.date is None else check_day(options.date),
        options.images.names,
    )
    check_mask_id(encoder.tokenizer, options.mask_id, "--mask-id")
    begin_of_text_id(encoder.tokenizer)
    found = find_chats(inputs)
    files = found.files
    outcome = ChatOutcome(options.max_bad_lines, found.unread)
    with opened_parts(prefix, parts_key(options, encoder, files), shard=None) as folder:
        encoder = with_kept_date(encoder, folder)
        job = describe_job(encoder, options)
        chunks = enumerate(cut_into_chunks(files, PIECE_BYTES))
        tasks = [ChunkTask(job, chunk, str(folder / f"part-{number}")) for number, chunk in chunks]
        encode_parts(tasks, folder, options.workers, outcome)
        with staged_files(prefix, SUFFIXES, options.overwrite) as partial:
            summary, chat = join_parts(partial, tasks, encoder, outcome, options)
            if summary.documents == 0:
                raise UserError("no conversation in the input", "at least one with an answer", "check the inputs")
            manifest = make_manifest(inputs, len(files), encoder.tokenizer, None, summary, outcome, chat)
            write_manifest(partial, manifest)
            publish_images(partial, prefix)
        shutil.rmtree(folder)
    return manifest


def describe_job(encoder: ChatEncoder, options: ChatOptions) -> ChatJob:
    """What the processes need to make the same encoder."""
    template = encoder.template
    return ChatJob(
        tokenizer_folder=str(encoder.tokenizer.folder),
        tokenizer_sha256=encoder.tokenizer.fingerprint,
        template_sha256=template.sha256,
        template_tokens=template.tokens,
        thinking=options.thinking,
        last_turn_only=options.last_turn_only,
        chosen=options.chosen,
        allow_losses=options.allow_losses,
        day=template.date,
        fill_blocks=options.fill_blocks,
        images=options.images,
    )


def with_kept_date(encoder: ChatEncoder, folder: Path) -> ChatEncoder:
    """The encoder with the date that the parts in the folder were begun with: one run has one date, also where it is
    killed and goes on after midnight."""
    if encoder.template.date is None:
        return encoder
    path = folder / DATE
    if not path.is_file():
        write_text(path, encoder.template.date)
    day = check_day(path.read_text(encoding="utf-8"))
    return replace(encoder, template=replace(encoder.template, date=day), plans={}, shapes={})


def find_chats(inputs: Sequence[str | Path]) -> Found:
    """The input files, and the counts of what is not read in the input folders. Raises UserError for a file of another
    kind."""
    found = search_inputs(inputs, RECORD_SUFFIXES)
    for path in found.files:
        if split_suffix(path.name)[0] not in RECORD_SUFFIXES:
            allowed = f"{', '.join(RECORD_SUFFIXES)} files"
            raise UserError(f"{path}", allowed, f"write a conversation per line into a {LINES}")
    return found


def parts_key(options: ChatOptions, encoder: ChatEncoder, files: Sequence[Path]) -> str:
    """Names everything that the parts depend on: another key, other parts. Of the date only one that was given."""
    job = asdict(describe_job(encoder, options)) | {"day": options.date}
    seen = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = (FORMAT_VERSION, version("nld-train"), PIECE_BYTES, job, seen)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def encode_parts(tasks: Sequence[ChunkTask[ChatJob]], folder: Path, workers: int, outcome: PreparationCounts) -> None:
    """Make every part that is not there."""
    done = len(list(folder.glob(f"*{REPORTS}")))
    if done:
        logger.info("going on: %d of %d parts are finished already", done, len(tasks))
    size = sum(piece.size for task in tasks for piece in task.chunk)
    with show_progress(size) as tally, closing(run_ordered(finish_part, tasks, workers)) as results:
        for _ in count_reports(results, outcome, tally):
            pass


def join_parts(
    partial: Path, tasks: Sequence[ChunkTask[ChatJob]], encoder: ChatEncoder, outcome: ChatOutcome, options: ChatOptions
) -> tuple[TokenFileSummary, ChatManifest]:
    """One file of all parts, in the order of the input."""
    dtype: np.dtype = token_dtype(encoder.tokenizer.vocab_size)
    with TokenFileWriter(partial, dtype) as tokens, SupervisionWriter(partial) as supervised:
        for task in tasks:
            tokens.append_file(task.prefix)
            supervised.append_file(task.prefix)
        summary, digest = tokens.finish(), supervised.finish()
    parts = [(task.prefix, len(read_token_index(task.prefix).lengths)) for task in tasks]
    chat = ChatManifest(
        conversations=summary.documents,
        supervised_tokens=supervised.supervised_tokens,
        dropped=dict(sorted(outcome.reasons.items())),
        left_out=dict(sorted(outcome.left_out.items())),
        unread=dict(sorted(outcome.unread_fields.items())),
        losses=dict(sorted(outcome.losses.items())),
        losses_allowed=options.allow_losses,
        chosen=options.chosen,
        template=encoder.template.source,
        date=encoder.template.date,
        bos_token_id=begin_of_text_id(encoder.tokenizer),
        template_sha256=encoder.template.sha256,
        end_of_turn_id=encoder.end_mark(),
        thinking=encoder.template.thinking,
        last_turn_only=encoder.last_turn_only,
        supervised_sha256=digest,
        images=join_images(partial, parts, encoder.image_tokens, options.images.sizes, outcome.converted),
    )
    return summary, chat
