"""Which conversations of a chat file lie in which row: chosen, split, packed, and kept for the run.

FOLDER/chat-KEY/  where KEY is a digest of the file and of every setting that matters:
  plan.json, and for each split SPLIT.documents.npy and SPLIT.starts.npy
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nld_train.config import DataConfig, LongConversations, RunConfig, require
from nld_train.data.image_store import ImageIndex
from nld_train.data.manifest import parse_blend, read_manifest
from nld_train.data.packing import PackedRows, fill_rate, pack_documents, ragged_share
from nld_train.data.splits import PARTS, parts_read, split_documents
from nld_train.data.supervision import Supervision
from nld_train.data.token_file import read_token_index
from nld_train.data.two_budgets import pack_two_budgets
from nld_train.files import staged_folder

logger = logging.getLogger(__name__)
VERSION = 2  # of the plans: raise it where the same settings would give other rows


@dataclass(frozen=True)
class SplitCounts:
    """A split in numbers."""

    conversations: int  # in rows
    tokens: int
    rows: int
    cut: int  # of the conversations, longer than a row: without their end
    dropped: int  # longer than a row and left out: by option, or because no supervised token was left
    ragged_share: float  # of the diffusion blocks' places, left empty by the conversations' last blocks
    text_tokens: int | None = None  # tokens but for those of images; None: all are text
    dropped_images: int = 0  # of those left out, conversations with images: they are never cut


@dataclass(frozen=True)
class ConversationSizes:
    """What each conversation of a file takes of a row."""

    tokens: NDArray[np.int64]  # [documents] as far as it is used
    texts: NDArray[np.int64]  # [documents] of these, outside of images
    kept: NDArray[np.bool_]  # [documents] whether it is used
    cut: NDArray[np.bool_]  # [documents] without its end
    pictured: NDArray[np.bool_] | None  # [documents] with images; None: a file of text alone


@dataclass(frozen=True)
class PackedSplit:
    rows: PackedRows
    counts: SplitCounts


Plan = dict[str, PackedSplit]  # by split
Plans = dict[str, Plan]  # by prefix, in the order of the blend


def open_packings(run: RunConfig, folder: Path) -> Plans:
    """The plans of a run's chat files, made and kept in `folder` where they are not there yet.

    Raises: UserError where a split that the run reads is empty.
    """
    prefixes = [prefix for _, prefix in parse_blend(run.data.blend)]
    plans = {prefix: open_packing(prefix, run.data, run.diffusion.block_size, folder) for prefix in prefixes}
    for prefix, plan in plans.items():
        for name in parts_read(run):
            check_split_rows(prefix, run.data, name, plan[name].counts)
            logger.info("%s", describe_split(prefix, run.data, name, plan[name].counts))
    return plans


def open_packing(prefix: str, data: DataConfig, block_size: int, folder: Path) -> Plan:
    """The plan of one chat file. Raises: UserError."""
    place = folder / f"chat-{packing_key(prefix, data, block_size)}"
    if not place.is_dir():
        plan = make_packing(prefix, data, block_size)
        with staged_folder(place, overwrite=False) as partial:
            save_packing(plan, partial)
    return load_packing(place)


def packing_key(prefix: str, data: DataConfig, block_size: int) -> str:
    manifest = read_manifest(prefix)
    assert manifest.chat is not None, f"{prefix} holds plain text: the start checks compare it with data.chat"
    hashes = (manifest.bin_sha256, manifest.idx_sha256, manifest.chat.supervised_sha256)
    settings: list[object] = [data.sequence_length, data.long_conversations, data.split, block_size]
    if data.noisy_length < data.sequence_length:  # so that other runs keep the plans that they have
        settings.append(data.noisy_length)
    if manifest.chat.images is not None:
        settings.append(manifest.chat.images.images_sha256)
    return hashlib.sha256(json.dumps([VERSION, *hashes, *settings]).encode()).hexdigest()[:16]


def make_packing(prefix: str, data: DataConfig, block_size: int) -> Plan:
    """Choose, split and pack the conversations of a chat file. Raises UserError."""
    sizes = measure_conversations(prefix, data)
    shares = split_documents(len(sizes.tokens), data.split)
    return {name: pack_split(sizes, numbers, data, block_size) for name, numbers in shares.items()}


def measure_conversations(prefix: str, data: DataConfig) -> ConversationSizes:
    """What each conversation of a file takes of a row. One with images that does not fit a row is left out: cut, it
    could end within an image."""
    lengths = np.asarray(read_token_index(prefix).lengths, np.int64)
    manifest = read_manifest(prefix)
    assert manifest.chat is not None, "a chat file"
    capacity = data.noisy_length  # of text alone
    kept = fitting_conversations(lengths, Supervision(prefix), capacity, data.long_conversations)
    tokens = np.minimum(lengths, capacity)
    if manifest.chat.images is None:
        return ConversationSizes(tokens, tokens, kept, lengths > capacity, None)
    in_images = ImageIndex(prefix).document_tokens()
    pictured, texts = in_images > 0, lengths - in_images
    return ConversationSizes(
        tokens=np.where(pictured, lengths, tokens),
        texts=np.where(pictured, texts, tokens),
        kept=np.where(pictured, (lengths <= data.sequence_length) & (texts <= capacity), kept),
        cut=~pictured & (lengths > capacity),
        pictured=pictured,
    )


def fitting_conversations(
    lengths: NDArray[np.int64], supervision: Supervision, capacity: int, long: LongConversations
) -> NDArray[np.bool_]:
    """Which conversations are used: all that fit a row, and of the longer ones, under "cut", those whose first
    `capacity` tokens hold a supervised one."""
    kept = lengths <= capacity
    if long == "cut":
        for document in np.flatnonzero(~kept):
            kept[document] = supervision.of(int(document))[:capacity].any()
    return kept


def pack_split(sizes: ConversationSizes, numbers: NDArray[np.int64], data: DataConfig, block_size: int) -> PackedSplit:
    """Pack the conversations `numbers` of a split, as far as they are kept."""
    used, left_out = numbers[sizes.kept[numbers]], numbers[~sizes.kept[numbers]]
    tokens, texts = sizes.tokens[used], sizes.texts[used]
    if sizes.pictured is None or data.noisy_length == data.sequence_length:  # one budget is as narrow as both
        packed = pack_documents(tokens, data.noisy_length)
    else:
        packed = pack_two_budgets(tokens, texts, data.sequence_length, data.noisy_length)
    counts = SplitCounts(
        conversations=used.size,
        tokens=int(tokens.sum()),
        rows=len(packed),
        cut=int(sizes.cut[used].sum()),
        dropped=left_out.size,
        ragged_share=ragged_share(texts[texts > 0], block_size),
        text_tokens=None if sizes.pictured is None else int(texts.sum()),
        dropped_images=0 if sizes.pictured is None else int(sizes.pictured[left_out].sum()),
    )
    return PackedSplit(PackedRows(used[packed.documents], packed.starts), counts)


def save_packing(plan: Plan, folder: Path) -> None:
    for name, split in plan.items():
        np.save(folder / f"{name}.documents.npy", split.rows.documents)
        np.save(folder / f"{name}.starts.npy", split.rows.starts)
    counts = {name: asdict(split.counts) for name, split in plan.items()}
    (folder / "plan.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


def load_packing(folder: Path) -> Plan:
    """The plan as saved, memory-mapped."""
    counts = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    return {
        name: PackedSplit(
            PackedRows(*(np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in ("documents", "starts"))),
            SplitCounts(**counts[name]),
        )
        for name in PARTS
    }


def check_split_rows(prefix: str, data: DataConfig, name: str, counts: SplitCounts) -> None:
    """Raise UserError where a split is empty."""
    require(
        counts.rows > 0,
        f"{prefix} has no conversation for {name} under data.split={data.split}, with {counts.dropped} left out as "
        f"longer than {_row_size(data)}",
        "one or more",
        "give more data, other shares or longer rows; train.eval_batches=0 needs no validation",
    )


def _row_size(data: DataConfig) -> str:
    """What a row holds, in words."""
    more = "" if data.noisy_length == data.sequence_length else f", {data.noisy_length:,} of them text"
    return f"{data.sequence_length:,} tokens{more}"


def describe_split(prefix: str, data: DataConfig, name: str, counts: SplitCounts) -> str:
    """A split in one line."""
    capacity = data.sequence_length
    full = f"{fill_rate(counts.tokens, counts.rows, capacity):.2%} full"
    if data.noisy_length < capacity:
        text = counts.tokens if counts.text_tokens is None else counts.text_tokens
        full += f", their {data.noisy_length:,} text tokens {fill_rate(text, counts.rows, data.noisy_length):.2%}"
    pictured = f" ({counts.dropped_images:,} with images, which are never cut)" if counts.dropped_images else ""
    return (
        f"{prefix}, {name}: {counts.conversations:,} conversations in {counts.rows:,} rows of {capacity:,}, "
        f"{full}; {counts.cut:,} cut at a row's length, {counts.dropped:,} left out{pictured}; "
        f"padding to whole blocks would cost {counts.ragged_share:.1%}, blocks that start with a conversation cost none"
    )
