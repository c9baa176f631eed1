"""The work of one process on chat files: a chunk of input becomes a part, which stays until all parts are there."""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.conversations import read_conversation
from data_prep.encode import ChunkTask, PieceReport, job_tokenizer
from data_prep.sources import FilePiece, TextRecord, read_values
from nld_train.data import supervision
from nld_train.data.chat_encoder import ChatEncoder
from nld_train.data.chat_template import ChatProblem, load_chat_template
from nld_train.data.supervision import SupervisionWriter
from nld_train.data.token_file import TokenFileWriter, token_dtype
from nld_train.files import staged_files

REPORTS = ".reports.json"  # its presence says that the part is finished
PART_SUFFIXES = (".bin", ".idx", supervision.SUFFIX, REPORTS)


@dataclass(frozen=True)
class ChatJob:
    """What is the same for every chunk of a run."""

    tokenizer_folder: str
    tokenizer_sha256: str
    template_sha256: str
    template_tokens: tuple[tuple[str, str], ...]  # what the template is given beside it
    thinking: bool
    last_turn_only: bool


@functools.lru_cache(maxsize=1)
def job_encoder(job: ChatJob) -> ChatEncoder:
    """The job's tokenizer and template, loaded once per process."""
    tokenizer = job_tokenizer(job.tokenizer_folder, job.tokenizer_sha256)
    template = load_chat_template(tokenizer, job.thinking)
    same = (template.sha256, template.tokens) == (job.template_sha256, job.template_tokens)
    assert same, f"the template of {job.tokenizer_folder} changed during the run"
    return ChatEncoder(tokenizer, template, job.last_turn_only)


def finish_part(task: ChunkTask[ChatJob]) -> tuple[PieceReport, ...]:
    """The reports of a part, one per piece. It is made, whole or not at all, unless an earlier run has left it."""
    path = Path(f"{task.prefix}{REPORTS}")
    if path.is_file():
        return read_piece_reports(path)
    with staged_files(Path(task.prefix), PART_SUFFIXES, overwrite=True) as partial:
        reports = encode_conversations(task, partial)
        Path(f"{partial}{REPORTS}").write_text(json.dumps([asdict(report) for report in reports]), encoding="utf-8")
    return reports


def read_piece_reports(path: Path) -> tuple[PieceReport, ...]:
    content = json.loads(path.read_text(encoding="utf-8"))
    for report in content:
        report["piece"] = FilePiece(**report["piece"])
        report["bad"] = tuple(TextRecord(**record) for record in report["bad"])
    return tuple(PieceReport(**report) for report in content)


def encode_conversations(task: ChunkTask[ChatJob], partial: Path) -> tuple[PieceReport, ...]:
    """Write the conversations of a chunk, in order."""
    encoder = job_encoder(task.job)
    dtype = token_dtype(encoder.tokenizer.vocab_size)
    with TokenFileWriter(partial, dtype) as tokens, SupervisionWriter(partial) as supervised:
        reports = tuple(encode_chat_piece(piece, encoder, tokens, supervised) for piece in task.chunk)
        tokens.finish()
        supervised.finish()
    return reports


def encode_chat_piece(
    piece: FilePiece, encoder: ChatEncoder, tokens: TokenFileWriter, supervised: SupervisionWriter
) -> PieceReport:
    records = documents = count = text_bytes = 0
    bad = []
    for found in read_values(piece):
        records += 1
        try:
            encoded = encoder.conversation(read_conversation(found))
        except ChatProblem as problem:
            bad.append(TextRecord(found.line, problem=str(problem)))
            continue
        tokens.append(encoded.tokens)
        supervised.append(encoded.supervised)
        documents += 1
        count += encoded.tokens.size
        text_bytes += encoded.text_bytes
    return PieceReport(piece, records, documents, count, text_bytes, tuple(bad))
