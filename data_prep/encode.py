"""The work of one process: a chunk of input becomes a part, which stays until all parts are there. Imports little."""

import functools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.sources import FilePiece, TextRecord, read_piece
from data_prep.text_encoder import TextEncoder, load_encoder
from nld_train.data.token_file import token_dtype
from nld_train.data.tokenizer import TextTokenizer, load_tokenizer
from nld_train.files import staged_files

TOKENS, LENGTHS = ".bin", ".lengths"  # of a part: its tokens end to end, and int32 tokens of each document
REPORTS = ".reports.json"  # its presence says that the part is finished
PART_SUFFIXES = (TOKENS, LENGTHS, REPORTS)
BATCH_CHARACTERS = 1 << 20  # of text that is encoded at a time, unless one document has more


@dataclass(frozen=True)
class TextJob:
    """What is the same for every chunk of a run."""

    tokenizer_folder: str
    tokenizer_sha256: str
    end_of_document_id: int | None
    text_key: str
    engine: str  # what encodes, as text_encoder.choose_engine names it


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


@functools.lru_cache(maxsize=1)
def encoder_of_job(folder: str, sha256: str, engine: str) -> TextEncoder:
    """What encodes the texts of a job, loaded and checked once per process."""
    return load_encoder(job_tokenizer(folder, sha256), engine)


def finish_text_part(task: ChunkTask[TextJob]) -> tuple[PieceReport, ...]:
    """The reports of a part, one per piece. It is made, whole or not at all, unless an earlier run has left it."""
    if Path(f"{task.prefix}{REPORTS}").is_file():
        return read_part_reports(task.prefix)
    encoder = encoder_of_job(task.job.tokenizer_folder, task.job.tokenizer_sha256, task.job.engine)
    with staged_files(Path(task.prefix), PART_SUFFIXES, overwrite=True) as partial:
        with open(f"{partial}{TOKENS}", "wb") as tokens, open(f"{partial}{LENGTHS}", "wb") as lengths:
            part = _Part(encoder, task.job.end_of_document_id, tokens, lengths)
            reports = tuple(_encode_piece(piece, task.job.text_key, part) for piece in task.chunk)
        Path(f"{partial}{REPORTS}").write_text(json.dumps([asdict(report) for report in reports]), encoding="utf-8")
    return reports


def read_part_reports(prefix: str | Path) -> tuple[PieceReport, ...]:
    """The reports of a finished part."""
    content = json.loads(Path(f"{prefix}{REPORTS}").read_text(encoding="utf-8"))
    for report in content:
        report["piece"] = FilePiece(**report["piece"])
        report["bad"] = tuple(TextRecord(**record) for record in report["bad"])
    return tuple(PieceReport(**report) for report in content)


@dataclass
class _Part:
    """The files of a part that is being written, and the texts that are to be encoded together."""

    encoder: TextEncoder
    ending: int | None
    tokens: BinaryIO
    lengths: BinaryIO
    waiting: list[str] = field(default_factory=list)
    characters: int = 0
    documents: int = 0
    written: int = 0  # tokens

    def add(self, text: str) -> None:
        self.waiting.append(text)
        self.characters += len(text)
        self.documents += 1
        if self.characters >= BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        ids, counts = self.encoder.encode_texts(self.waiting)
        if self.ending is not None:
            ids, counts = _append_ending(ids, counts, self.ending)
        assert counts.min() > 0, "a text that is not empty has tokens"
        self.tokens.write(ids.astype(token_dtype(self.encoder.tokenizer.vocab_size), copy=False).tobytes())
        self.lengths.write(counts.astype("<i4").tobytes())
        self.written += ids.size
        self.waiting, self.characters = [], 0


def _append_ending(
    ids: NDArray[np.integer], counts: NDArray[np.integer], ending: int
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """End every document with one more id. ids: of all documents, end to end; counts: ids of each."""
    counts = counts + 1
    result = np.full(ids.size + counts.size, ending, dtype=ids.dtype)
    is_text = np.ones(result.size, dtype=np.bool_)
    is_text[np.cumsum(counts) - 1] = False
    result[is_text] = ids
    return result, counts


def _encode_piece(piece: FilePiece, text_key: str, part: _Part) -> PieceReport:
    records = text_bytes = 0
    bad = []
    documents, tokens = part.documents, part.written
    for record in read_piece(piece, text_key):
        records += 1
        if record.problem:
            bad.append(record)
        elif record.text and not record.text.isspace():  # only a text file can be blank here, and is no document then
            part.add(record.text)
            text_bytes += len(record.text.encode("utf-8"))
    part.flush()  # so that the tokens of every piece are known
    return PieceReport(piece, records, part.documents - documents, part.written - tokens, text_bytes, tuple(bad))
