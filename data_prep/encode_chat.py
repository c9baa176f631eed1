"""The work of one process on chat files: a chunk of input becomes a part, which stays until all parts are there."""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from data_prep.conversations import Conversation, LeftOut, read_conversation
from data_prep.encode import REPORTS, ChunkTask, PieceReport, job_tokenizer
from data_prep.image_check import CheckedImage, ImageChecker, ImageRules
from data_prep.image_parts import image_sources
from data_prep.image_shards import PART_BYTES, PART_IMAGES, PartImages
from data_prep.sources import FilePiece, TextRecord, read_values
from nld_train.data import supervision
from nld_train.data.chat_encoder import ChatEncoder, EncodedConversation
from nld_train.data.chat_template import ChatProblem, load_chat_template
from nld_train.data.image_tokens import find_image_tokens
from nld_train.data.supervision import SupervisionWriter
from nld_train.data.token_file import TokenFileWriter, token_dtype
from nld_train.files import staged_files

PART_SUFFIXES = (".bin", ".idx", supervision.SUFFIX, PART_BYTES, PART_IMAGES, REPORTS)
LOST_IMAGES = "images behind the last answer, left out with the text there"


@dataclass(frozen=True)
class ChatJob:
    """What is the same for every chunk of a run."""

    tokenizer_folder: str
    tokenizer_sha256: str
    template_sha256: str
    template_tokens: tuple[tuple[str, str], ...]  # what the template is given beside it
    thinking: bool
    last_turn_only: bool
    chosen: bool  # of preferences, the better answer
    allow_losses: bool  # also answers that lost what they rest on
    day: str | None  # YYYY-MM-DD, what a template with a clock is told; None: it has no clock
    fill_blocks: int  # tokens: conversations are filled up to a multiple of it
    images: ImageRules


@dataclass(frozen=True)
class ChatReport(PieceReport):
    """What became of one piece, and what there is to say of its conversations."""

    unread: dict[str, int] = field(default_factory=dict)  # field -> conversations in which it was not read
    losses: dict[str, int] = field(default_factory=dict)  # what the template did not write, with its count
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> rows that the options leave out
    converted: dict[str, int] = field(default_factory=dict)  # what is changed when images are decoded, with its count


@functools.lru_cache(maxsize=1)
def job_encoder(job: ChatJob) -> ChatEncoder:
    """The job's tokenizer and template, loaded once per process."""
    tokenizer = job_tokenizer(job.tokenizer_folder, job.tokenizer_sha256)
    template = load_chat_template(tokenizer, job.thinking, job.day)
    same = (template.sha256, template.tokens) == (job.template_sha256, job.template_tokens)
    assert same, f"the template of {job.tokenizer_folder} changed during the run"
    tokens = find_image_tokens(tokenizer, job.images.names)
    return ChatEncoder(tokenizer, template, job.last_turn_only, job.allow_losses, tokens)


@functools.lru_cache(maxsize=1)
def job_checker(rules: ImageRules) -> ImageChecker:
    """What checks the images of a job, and remembers those that it has seen in this process."""
    return ImageChecker(rules)


def finish_part(task: ChunkTask[ChatJob]) -> tuple[ChatReport, ...]:
    """The reports of a part, one per piece. It is made, whole or not at all, unless an earlier run has left it."""
    path = Path(f"{task.prefix}{REPORTS}")
    if path.is_file():
        return read_piece_reports(path)
    with staged_files(Path(task.prefix), PART_SUFFIXES, overwrite=True) as partial:
        reports = encode_conversations(task, partial)
        Path(f"{partial}{REPORTS}").write_text(json.dumps([asdict(report) for report in reports]), encoding="utf-8")
    return reports


def read_piece_reports(path: Path) -> tuple[ChatReport, ...]:
    """The reports that an earlier run left."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for report in content:
        report["piece"] = FilePiece(**report["piece"])
        report["bad"] = tuple(TextRecord(**record) for record in report["bad"])
    return tuple(ChatReport(**report) for report in content)


@dataclass
class PartWriters:
    """The files of a part that conversations are written into."""

    tokens: TokenFileWriter
    supervised: SupervisionWriter
    images: PartImages
    documents: int = 0

    def append(self, encoded: EncodedConversation, images: Sequence[tuple[bytes, CheckedImage]]) -> None:
        """Add a conversation. images: with their bytes, in order."""
        self.tokens.append(encoded.tokens)
        self.supervised.append(encoded.supervised)
        self.images.append(self.documents, encoded.image_starts, images)
        self.documents += 1


def encode_conversations(task: ChunkTask[ChatJob], partial: Path) -> tuple[ChatReport, ...]:
    """Write the conversations of a chunk, in order."""
    encoder = job_encoder(task.job)
    dtype = token_dtype(encoder.tokenizer.vocab_size)
    with (
        TokenFileWriter(partial, dtype) as tokens,
        SupervisionWriter(partial) as supervised,
        PartImages(partial) as images,
    ):
        writers = PartWriters(tokens, supervised, images)
        reports = tuple(encode_conversation_piece(piece, encoder, task.job, writers) for piece in task.chunk)
        tokens.finish()
        supervised.finish()
        images.finish()
    return reports


def encode_conversation_piece(piece: FilePiece, encoder: ChatEncoder, job: ChatJob, writers: PartWriters) -> ChatReport:
    """Write the conversations of one piece, in order; bad ones are reported."""
    records = documents = count = text_bytes = 0
    bad = []
    unread, losses, left_out, converted = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for found in read_values(piece):
        records += 1
        try:
            conversation = read_conversation(found, job.chosen, encoder.template.reads)
            encoded, images = encode_with_images(conversation, encoder, job, Path(piece.path))
        except ChatProblem as problem:
            bad.append(TextRecord(found.line, problem=str(problem)))
            continue
        except LeftOut as reason:
            left_out[str(reason)] += 1
            continue
        writers.append(encoded, images)
        unread.update(conversation.unread)
        losses.update(conversation.notes)
        losses.update(encoded.notes)
        converted.update(note for _, image in images for note in image.notes)
        documents += 1
        count += encoded.tokens.size
        text_bytes += encoded.text_bytes
    counts = (dict(unread), dict(losses), dict(left_out), dict(converted))
    return ChatReport(piece, records, documents, count, text_bytes, tuple(bad), *counts)


def encode_with_images(
    conversation: Conversation, encoder: ChatEncoder, job: ChatJob, beside: Path
) -> tuple[EncodedConversation, list[tuple[bytes, CheckedImage]]]:
    """A conversation as tokens, and its images. beside: the file that it stands in. Raises ChatProblem."""
    checker = job_checker(job.images)
    images = [checker.load_image(source, beside) for source in image_sources(conversation.messages)]
    grids = [(image.rows, image.columns) for _, image in images]
    encoded = encoder.conversation(conversation.messages, conversation.tools, grids)
    if job.fill_blocks > 1:
        encoded = fill_last_block(encoded, encoder.end_mark(), job.fill_blocks)
    return encoded, images[: len(encoded.image_starts)]


def fill_last_block(encoded: EncodedConversation, end_mark: int, block_size: int) -> EncodedConversation:
    """The conversation up to its last supervised token, then supervised end marks up to a multiple of `block_size`.

    Decoding does not know how long an answer will be, and gives a whole block of masks. Where training cuts the last
    block off behind the answer, or shows what stands there, the number of its masks tells where the answer ends; what
    is trained so goes on behind the end when it is given more.
    """
    end = int(np.flatnonzero(encoded.supervised)[-1]) + 1
    missing = -end % block_size
    tokens = np.append(encoded.tokens[:end], np.full(missing, end_mark, encoded.tokens.dtype))
    supervised = np.append(encoded.supervised[:end], np.full(missing, True))
    notes = Counter(encoded.notes)
    notes[f"end marks that fill blocks of {block_size} tokens"] += missing
    kept = tuple(start for start in encoded.image_starts if start < end)
    if len(kept) < len(encoded.image_starts):
        notes[LOST_IMAGES] += len(encoded.image_starts) - len(kept)
    return replace(encoded, tokens=tokens, supervised=supervised, notes=notes, image_starts=kept)
