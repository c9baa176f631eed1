"""The work of one process: a chunk of input becomes a small token file and a report. Imports little, to start fast."""

import functools
from dataclasses import dataclass

import numpy as np

from data_prep.sources import FilePiece, TextRecord, read_piece
from nld_train.data.token_file import TokenFileWriter, token_dtype
from nld_train.data.tokenizer import TextTokenizer, load_tokenizer


@dataclass(frozen=True)
class TextJob:
    """What is the same for every chunk of a run."""

    tokenizer_folder: str
    tokenizer_sha256: str
    end_of_document_id: int | None
    text_key: str


@dataclass(frozen=True)
class ChunkTask[AnyJob]:
    """One chunk, and the prefix its tokens are written under."""

    job: AnyJob
    chunk: tuple[FilePiece, ...]
    prefix: str


@dataclass(frozen=True)
class PieceReport:
    """What became of one piece."""

    piece: FilePiece
    records: int  # lines or rows of a piece of records, 1 for a text file
    documents: int
    tokens: int
    text_bytes: int
    bad: tuple[TextRecord, ...]  # line numbers count from the start of the piece


@functools.lru_cache(maxsize=1)
def job_tokenizer(folder: str, sha256: str) -> TextTokenizer:
    """The tokenizer of a job, loaded once per process."""
    tokenizer = load_tokenizer(folder)
    assert tokenizer.fingerprint == sha256, f"{folder} changed during the run"
    return tokenizer


def encode_chunk(task: ChunkTask[TextJob]) -> tuple[PieceReport, ...]:
    """Write the documents of a chunk to the task's prefix, in order; one report per piece."""
    tokenizer = job_tokenizer(task.job.tokenizer_folder, task.job.tokenizer_sha256)
    with TokenFileWriter(task.prefix, token_dtype(tokenizer.vocab_size)) as writer:
        reports = tuple(encode_text_piece(piece, task.job, tokenizer, writer) for piece in task.chunk)
        writer.finish()
    return reports


def encode_text_piece(piece: FilePiece, job: TextJob, tokenizer: TextTokenizer, writer: TokenFileWriter) -> PieceReport:
    records = documents = tokens = text_bytes = 0
    bad = []
    ending = [] if job.end_of_document_id is None else [job.end_of_document_id]
    for record in read_piece(piece, job.text_key):
        records += 1
        if record.problem:
            bad.append(record)
        elif record.text.strip():  # only a text file can be empty here, and an empty file is no document
            row = np.append(tokenizer.encode(record.text), np.array(ending, dtype=writer.dtype))
            writer.append(row)
            documents += 1
            tokens += row.size
            text_bytes += len(record.text.encode("utf-8"))
    return PieceReport(piece, records, documents, tokens, text_bytes, tuple(bad))
