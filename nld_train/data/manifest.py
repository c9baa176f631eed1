"""PREFIX.manifest.json: what a token file holds, what made it, and the checks a run makes before it reads the file."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from nld_train.data.image_store import ImagesManifest, check_image_files
from nld_train.data.supervision import Supervision, supervised_path
from nld_train.data.token_file import REMAKE, TokenFile, bin_path, digest_like, idx_path
from nld_train.data.tokenizer import tokenizer_fingerprint
from nld_train.errors import UserError
from nld_train.json_file import has_json_type, read_json_object

FORMAT_VERSION = 3  # 1: without `chat`; 2: without `unread`, and `chat` without what the template did not write
PLAIN_TEXT_VERSIONS = (2, 3)  # alike where `chat` is None, but for `unread`
SUFFIX = ".manifest.json"
COUNT_TOKENS = 1 << 24


@dataclass(frozen=True, kw_only=True)
class ChatManifest:
    """What a chat file holds beyond its tokens, as `nld data prepare-chat` leaves it."""

    conversations: int  # each is one document
    supervised_tokens: int
    dropped: dict[str, int]  # reason -> conversations left out; their sum is `bad_lines`
    left_out: dict[str, int]  # reason -> rows that the options leave out, such as the bad ones of a preference
    unread: dict[str, int]  # field -> conversations in which it was filled and not read
    losses: dict[str, int]  # what the template did not write, and where answers end otherwise, with its count
    losses_allowed: bool  # also of answers that lost what they rest on
    chosen: bool  # of preferences, the better answer
    template: str  # where the tokenizer's folder keeps it: a file's name, or "default ChatML"
    template_sha256: str  # of the chat template's text
    date: str | None  # YYYY-MM-DD, what a template with a clock was told; None: it has none
    bos_token_id: int | None  # of the tokenizer; None: it has none
    end_of_turn_id: int  # the control token that ends an answer, itself supervised
    thinking: bool  # what the template was given as enable_thinking
    last_turn_only: bool  # the last answer of a conversation counts, the others are context
    supervised_sha256: str  # of PREFIX.supervised.bin
    images: ImagesManifest | None = None  # None, and not in the file: conversations of text alone


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One token file, as `nld data prepare` leaves it. Sizes in bytes, hashes as SHA-256 hex digests."""

    format_version: int
    tool_version: str
    sources: list[str]  # names of the inputs, without the folders they lay in
    files: int
    empty_files: int  # held nothing but white space: no document
    bad_lines: int
    documents: int
    tokens: int
    text_bytes: int  # UTF-8, of all documents
    tokenizer_sha256: str
    vocab_size: int
    end_of_document_id: int | None  # appended to every document; None: nothing is
    bin_bytes: int
    idx_bytes: int
    bin_sha256: str
    idx_sha256: str
    chat: ChatManifest | None = None  # None: plain text, every token counts
    unread: dict[str, int] = field(default_factory=dict)  # kind -> files of the input folders that were not read


def manifest_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}{SUFFIX}")


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    content = asdict(manifest)
    if manifest.chat is not None and manifest.chat.images is None:
        del content["chat"]["images"]  # so that files of text are those of versions that knew no images
    manifest_path(prefix).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(prefix: str | Path) -> Manifest:
    """Raises UserError where the manifest is missing, broken, or of another format version."""
    path = manifest_path(prefix)
    if not path.is_file():
        raise UserError(f"no file {path}", "a .manifest.json beside the .bin and .idx", "copy it along, or " + REMAKE)
    content = read_json_object(path, "the manifest as written")
    version = content.get("format_version")
    known = PLAIN_TEXT_VERSIONS if content.get("chat") is None else (FORMAT_VERSION,)
    if version not in known:
        raise UserError(f"{path} has format_version {version!r}", " or ".join(map(str, known)), REMAKE)
    check_manifest_keys(path, Manifest, content)
    if content["chat"] is not None:
        content["chat"] = read_chat_section(path, content["chat"])
    return Manifest(**content)


def read_chat_section(path: Path, content: dict[str, Any]) -> ChatManifest:
    """What a manifest says of conversations, and of their images where there are some. Raises UserError."""
    filled = {"images": None} | content
    check_manifest_keys(path, ChatManifest, filled)
    if filled["images"] is not None:
        check_manifest_keys(path, ImagesManifest, filled["images"])
        filled["images"] = ImagesManifest(**filled["images"])
    return ChatManifest(**filled)


def check_manifest_keys(path: Path, section: type, content: object) -> None:
    """Raise UserError unless `content` has the fields of a dataclass, each of its type, and no others."""
    named = {entry.name for entry in fields(section)}
    wrong = named ^ set(content) if isinstance(content, dict) else named
    if wrong:
        raise UserError(f"{path}: missing or unknown {', '.join(sorted(wrong))}", "the manifest as written", REMAKE)
    assert isinstance(content, dict), "it has the fields"
    for name, kind in get_type_hints(section).items():
        if not has_json_type(kind, content[name]):
            raise UserError(f"{path}: {name} is {str(content[name])[:60]!r}", "the manifest as written", REMAKE)


def check_token_file(prefix: str | Path, verify_hashes: bool = False) -> Manifest:
    """Check that a token file is all there: index, tokens and manifest agree in size and, if asked, in SHA-256.

    Raises UserError at the first disagreement. Without `verify_hashes` no token is read.
    """
    tokens = TokenFile(prefix)
    manifest = read_manifest(prefix)
    for path, size in ((bin_path(prefix), manifest.bin_bytes), (idx_path(prefix), manifest.idx_bytes)):
        if path.stat().st_size != size:
            raise UserError(f"{path} has {path.stat().st_size} bytes", f"{size} as in {manifest_path(prefix)}", REMAKE)
    if (len(tokens), tokens.tokens) != (manifest.documents, manifest.tokens):
        raise UserError(
            f"{prefix}: {len(tokens)} documents, {tokens.tokens} tokens",
            f"{manifest.documents} documents, {manifest.tokens} tokens as in {manifest_path(prefix)}",
            REMAKE,
        )
    if manifest.chat is not None:
        Supervision(prefix)
        if manifest.chat.images is not None:
            check_image_files(prefix, manifest.chat.images, manifest.documents)
    if verify_hashes:
        check_token_file_hashes(prefix, manifest)
    return manifest


def check_token_file_hashes(prefix: str | Path, manifest: Manifest) -> None:
    """Read the files whole; raise UserError where a SHA-256 is not the manifest's."""
    for path, digest in payload_digests(prefix, manifest).items():
        found = digest_like(digest, path)
        if found != digest:
            raise UserError(f"{path} has SHA-256 {found}", f"{digest} as in {manifest_path(prefix)}", REMAKE)


def payload_digests(prefix: str | Path, manifest: Manifest) -> dict[Path, str]:
    """The files beside a manifest, and the digest that each should have."""
    digests = {bin_path(prefix): manifest.bin_sha256, idx_path(prefix): manifest.idx_sha256}
    if manifest.chat is not None:
        digests[supervised_path(prefix)] = manifest.chat.supervised_sha256
        if manifest.chat.images is not None:
            digests |= manifest.chat.images.digests(prefix)
    return digests


def check_token_file_tokenizer(
    prefix: str | Path, tokenizer_folder: str | Path, verify_hashes: bool = False
) -> Manifest:
    """`check_files`, and that the file was made with this tokenizer. Raises UserError."""
    manifest = check_token_file(prefix, verify_hashes)
    found = tokenizer_fingerprint(tokenizer_folder)
    if found != manifest.tokenizer_sha256:
        raise UserError(
            f"{prefix} was made with tokenizer {manifest.tokenizer_sha256[:12]}, {tokenizer_folder} is {found[:12]}",
            "the tokenizer the file was made with",
            "name that tokenizer, or " + REMAKE,
        )
    return manifest


def end_of_turn_id(prefixes: Sequence[str]) -> int | None:
    """The token with which the answers of chat files end, None where there is no file. Raises UserError where two files
    disagree: a server stops at one token."""
    found: dict[int, str] = {}
    for prefix in prefixes:
        chat = read_manifest(prefix).chat
        if chat is not None:
            found.setdefault(chat.end_of_turn_id, prefix)
    if len(found) > 1:
        got = ", ".join(f"{token} in {prefix}" for token, prefix in found.items())
        raise UserError(f"answers end with different tokens: {got}", "one token for all files", "use one chat template")
    return next(iter(found), None)


def parse_blend(entries: Sequence[str]) -> list[tuple[float | None, str]]:
    """("0.7:a", "0.3:b") -> [(0.7, "a"), (0.3, "b")]; ("a", "b") -> [(None, "a"), (None, "b")].

    Raises UserError for a weight that is no number above 0, a mixture of weighted and unweighted entries, an empty or a
    repeated prefix.
    """
    blend = [parse_blend_entry(entry) for entry in entries]
    prefixes = [prefix for _, prefix in blend]
    repeated = sorted({prefix for prefix in prefixes if prefixes.count(prefix) > 1})
    if repeated:
        raise UserError(f"data.blend names {repeated[0]} twice", "every prefix once", "add up its weights")
    if len({weight is None for weight, _ in blend}) > 1:
        got = ", ".join(entries)
        raise UserError(
            f"data.blend: {got}", "a weight for every prefix, or for none", "write WEIGHT:PREFIX throughout"
        )
    return blend


def parse_blend_entry(entry: str) -> tuple[float | None, str]:
    head, colon, prefix = entry.rpartition(":")
    got = f"data.blend entry {entry!r}"
    if not prefix:
        raise UserError(got, "PREFIX or WEIGHT:PREFIX", "name a file of `nld data prepare`")
    if not colon:
        return None, prefix
    try:
        weight = float(head)
    except ValueError as error:
        raise UserError(got, "WEIGHT:PREFIX with a number as weight", "write for example 0.7:data/web") from error
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(got, "weights above 0", "leave the prefix out, or give it a weight")
    return weight, prefix


def unigram_entropy(*prefixes: str | Path) -> float:
    """Entropy of the token frequencies of all files together, end-of-document tokens included, in nats per token.

    It is the loss of a model that knows how often each token occurs, and nothing else.
    """
    assert prefixes, "entropy of no file"
    counts = np.zeros(0, dtype=np.int64)
    for prefix in prefixes:
        flat = TokenFile(prefix).flat
        for start in range(0, len(flat), COUNT_TOKENS):
            found = np.bincount(flat[start : start + COUNT_TOKENS], minlength=len(counts))
            found[: len(counts)] += counts
            counts = found
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
