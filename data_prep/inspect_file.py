"""What a token file holds, for human eyes."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nld_train.data.image_pixels import open_image
from nld_train.data.image_store import ImagesManifest, StoredImage, StoredImages
from nld_train.data.manifest import ChatManifest, Manifest, check_token_file, check_token_file_tokenizer
from nld_train.data.token_file import TokenFile
from nld_train.data.tokenizer import TextTokenizer, load_tokenizer, printable_text
from nld_train.errors import UserError

SAMPLE_TOKENS = 200  # shown of a sampled document
QUANTILES = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}


def inspect_token_file(
    prefix: str | Path, tokenizer_folder: str | None, samples: int, seed: int, verify: bool
) -> Iterator[str]:
    """Lines of a report on a token file: manifest, document lengths, decoded samples (with a tokenizer folder).

    Raises UserError where the file is incomplete, contradicts its manifest (`verify`: its hashes too), or was made with
    another tokenizer.
    """
    if samples < 0:
        raise UserError(f"--samples {samples}", "0 or more", "use 0 to show none")
    if tokenizer_folder is None:
        manifest = check_token_file(prefix, verify)
    else:
        manifest = check_token_file_tokenizer(prefix, tokenizer_folder, verify)
    tokens = TokenFile(prefix)
    yield from manifest_lines(manifest)
    yield "hashes: as in the manifest" if verify else "hashes: not checked (--verify reads the files whole)"
    yield from length_lines(tokens)
    if tokenizer_folder is None:
        yield "samples: none (--tokenizer DIR decodes some)"
    else:
        images = None if manifest.chat is None else manifest.chat.images
        stored = None if images is None else StoredImages(prefix, images)
        yield from sample_lines(tokens, load_tokenizer(tokenizer_folder), samples, seed, stored)


def manifest_lines(manifest: Manifest) -> Iterator[str]:
    for name, value in vars(manifest).items():
        yield from section_lines(name, value)


def section_lines(name: str, value: object) -> Iterator[str]:
    """A field of a manifest; of a section, each of its fields."""
    if isinstance(value, ChatManifest | ImagesManifest):
        for part, found in vars(value).items():
            yield from section_lines(f"{name}, {part}", found)
    else:
        yield f"{name}: {value_text(value)}"


def chat_lines(chat: ChatManifest) -> Iterator[str]:
    """What a user must know of a chat file that was just made, beyond its size."""
    yield f"template: {chat.template}" + (f"; its clock said {chat.date}" if chat.date is not None else "")
    if chat.unread:
        yield f"fields that were not read: {counts_text(chat.unread)}"
    for name, count in (chat.losses | chat.left_out).items():
        yield f"{name}: {count:,}"
    if chat.images is not None:
        images = chat.images
        yield (
            f"images: {images.images:,} of {images.files:,} files, {images.image_tokens:,} tokens, "
            f"{sum(images.shard_bytes):,} bytes"
        )
        yield from (f"{name}: {count:,}" for name, count in images.converted.items())


def counts_text(counts: dict[str, int]) -> str:
    """Names with their counts, in one line."""
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def value_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count:,} {name}" for name, count in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(value_text(part) for part in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def length_lines(tokens: TokenFile) -> Iterator[str]:
    """Statistics of the document lengths, in tokens."""
    yield f"document length, mean: {tokens.tokens / len(tokens):,.1f} tokens"
    values = np.quantile(tokens.lengths, list(QUANTILES.values()))
    for name, value in zip(QUANTILES, values, strict=True):
        yield f"document length, {name}: {value:,.0f} tokens"


def sample_lines(
    tokens: TokenFile, tokenizer: TextTokenizer, samples: int, seed: int, stored: StoredImages | None
) -> Iterator[str]:
    """The head of a few documents drawn by `seed`, decoded, with images as their sizes."""
    drawn = random.Random(seed).sample(range(len(tokens)), min(samples, len(tokens)))
    for document in sorted(drawn):
        row = tokens[document]
        images = [] if stored is None else list(stored.of(document, 0))
        text = len(row) - sum(image.tokens for image in images)
        more = "" if text <= SAMPLE_TOKENS else f", the first {SAMPLE_TOKENS}{' of text' if images else ''} shown"
        yield f"--- document {document}: {len(row):,} tokens{more}"
        yield "".join(document_pieces(row, images, tokenizer))


def document_pieces(row: NDArray[np.integer], images: Sequence[StoredImage], tokenizer: TextTokenizer) -> Iterator[str]:
    """The first SAMPLE_TOKENS of a document's text, with the images among them as one piece each."""
    start, left = 0, SAMPLE_TOKENS
    for image in images:
        yield printable_text(tokenizer.decode(row[start : min(image.start, start + left)]))
        left -= image.start - start
        if left <= 0:
            return
        yield image_text(image)
        start = image.start + image.tokens
    yield printable_text(tokenizer.decode(row[start : start + left]))


def image_text(image: StoredImage) -> str:
    """An image in words: pixels as it came, and columns and rows of its cells."""
    width, height = open_image(image.data).size
    return f"[image {width}x{height} -> {image.columns}x{image.rows} cells]"
