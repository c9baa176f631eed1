"""Conversations in, chat file out: PREFIX.bin, .idx, .supervised.bin and .manifest.json, or nothing.

Parts are kept in a hidden folder beside the output until all are there, so that a run that was cut off goes on.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_prep.encode import ChunkTask
from data_prep.encode_chat import REPORTS, ChatJob, finish_part
from data_prep.pool import run_ordered
from data_prep.prepare_text import PreparationCounts, PreparationOptions, count_reports, make_manifest
from data_prep.progress_tally import show_progress
from data_prep.sources import LINES, TABLE, cut_into_chunks, find_files
from nld_train.data import manifest as manifest_file
from nld_train.data import supervision
from nld_train.data.chat_encoder import ChatEncoder, load_chat_encoder
from nld_train.data.manifest import FORMAT_VERSION, ChatManifest, Manifest, write_manifest
from nld_train.data.supervision import SupervisionWriter
from nld_train.data.token_file import TokenFileSummary, TokenFileWriter, token_dtype
from nld_train.data.tokenizer import load_tokenizer
from nld_train.errors import UserError
from nld_train.files import refuse_existing, staged_files

logger = logging.getLogger(__name__)
PIECE_BYTES = 1 << 21  # of input per part
SUFFIXES = (".bin", supervision.SUFFIX, manifest_file.SUFFIX, ".idx")


@dataclass(frozen=True, kw_only=True)
class ChatOptions(PreparationOptions):
    """How to prepare conversations."""

    thinking: bool = False  # given to the chat template as enable_thinking
    last_turn_only: bool = False  # only the last answer of a conversation is supervised


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
        refuse_existing([Path(f"{prefix}{suffix}") for suffix in SUFFIXES])
    encoder = load_chat_encoder(load_tokenizer(tokenizer_folder), options.thinking, options.last_turn_only)
    files = find_chats(inputs)
    job = ChatJob(
        str(tokenizer_folder),
        encoder.tokenizer.fingerprint,
        encoder.template.sha256,
        encoder.template.tokens,
        options.thinking,
        options.last_turn_only,
    )
    outcome = PreparationCounts(options.max_bad_lines)
    with parts_folder(prefix, parts_key(job, files)) as folder:
        chunks = enumerate(cut_into_chunks(files, PIECE_BYTES))
        tasks = [ChunkTask(job, chunk, str(folder / f"part-{number}")) for number, chunk in chunks]
        encode_parts(tasks, folder, options.workers, outcome)
        with staged_files(prefix, SUFFIXES, options.overwrite) as partial:
            summary, chat = join_parts(partial, tasks, encoder, outcome)
            if summary.documents == 0:
                raise UserError("no conversation in the input", "at least one with an answer", "check the inputs")
            manifest = make_manifest(inputs, len(files), encoder.tokenizer, None, summary, outcome, chat)
            write_manifest(partial, manifest)
    return manifest


def find_chats(inputs: Sequence[str | Path]) -> list[Path]:
    """The input files. Raises UserError for one of another kind."""
    files = find_files(inputs, (LINES, TABLE))
    for path in files:
        if path.suffix.lower() not in (LINES, TABLE):
            raise UserError(f"{path}", f"{LINES} and {TABLE} files", f"write a conversation per line into a {LINES}")
    return files


def parts_key(job: ChatJob, files: Sequence[Path]) -> str:
    """Names everything that the parts depend on: another key, other parts."""
    seen = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = (FORMAT_VERSION, version("nld-train"), PIECE_BYTES, asdict(job), seen)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@contextlib.contextmanager
def parts_folder(prefix: Path, key: str) -> Iterator[Path]:
    """The folder of the parts, with those that an earlier run left. It is removed when the block ends well, or when no
    part is finished; parts of another key are removed first.

    Raises UserError where another process is at work on the same output.
    """
    folder = prefix.parent / f".{prefix.name}.parts-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write in {prefix.parent}: {error.strerror}", "a folder with write access", "choose another output"
        ) from error
    with contextlib.ExitStack() as locks:
        for found in sorted(prefix.parent.glob(f".{prefix.name}.parts-*")):
            locks.enter_context(folder_lock(found))
            if found != folder:
                logger.info("removing the parts of another preparation of %s: its input or options differ", prefix)
                shutil.rmtree(found)
        try:
            yield folder
        except BaseException:
            if any(folder.glob(f"*{REPORTS}")):
                logger.info("finished parts stay in %s: the same command goes on from there", folder)
            else:
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder. The lock goes with the process, however that ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is at work in {folder}", "one preparation of an output at a time", "wait, or end it"
            ) from error
        yield
    finally:
        os.close(handle)


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
    partial: Path, tasks: Sequence[ChunkTask[ChatJob]], encoder: ChatEncoder, outcome: PreparationCounts
) -> tuple[TokenFileSummary, ChatManifest]:
    """One file of all parts, in the order of the input."""
    dtype: np.dtype = token_dtype(encoder.tokenizer.vocab_size)
    with TokenFileWriter(partial, dtype) as tokens, SupervisionWriter(partial) as supervised:
        for task in tasks:
            tokens.append_file(task.prefix)
            supervised.append_file(task.prefix)
        summary, digest = tokens.finish(), supervised.finish()
    chat = ChatManifest(
        conversations=summary.documents,
        supervised_tokens=supervised.supervised_tokens,
        dropped=dict(sorted(outcome.reasons.items())),
        template_sha256=encoder.template.sha256,
        end_of_turn_id=encoder.end_mark(),
        thinking=encoder.template.thinking,
        last_turn_only=encoder.last_turn_only,
        supervised_sha256=digest,
    )
    return summary, chat
