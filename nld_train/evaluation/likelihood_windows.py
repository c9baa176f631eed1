"""The windows of documents whose likelihood is measured.

A document is cut into windows of L + 1 tokens: each begins with the last token of the one before. The first token of a
window is context and never counts; the up to L others are predicted once by each measure. So every token of a document
counts in exactly one window, but for its first, before which nothing stands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nld_train.data.identity import file_identity
from nld_train.data.manifest import check_token_file_tokenizer
from nld_train.data.splits import split_documents
from nld_train.data.supervision import Supervision
from nld_train.data.token_file import TokenFile
from nld_train.data.tokenizer import UNFINISHED, TextTokenizer

CHARACTER_TOKENS = 4  # a character has up to 4 bytes in UTF-8, and a token of text at least one


@dataclass(frozen=True)
class TokenDocuments:
    """The documents of one source."""

    name: str
    sha256: str  # of what they were made from
    lengths: NDArray[np.int64]  # [documents] tokens of each
    read: Callable[[int], tuple[NDArray[np.integer], NDArray[np.bool_]]]  # its tokens [n], and which of them count [n]


@dataclass(frozen=True)
class WindowPlace:
    """Where a window lies."""

    number: int  # among the windows of all sources
    source: int
    document: int
    start: int  # its first token in the document

    @property
    def key(self) -> str:
        """The name of its record: in the order of the windows."""
        return f"{self.number:09d}"


@dataclass(frozen=True)
class LikelihoodWindow:
    """A window of n + 1 tokens."""

    tokens: NDArray[np.int64]  # [n + 1]
    counted: NDArray[np.bool_]  # [n]: which of tokens[1:] count
    text_bytes: int  # UTF-8, of the text of those that count


def open_token_file(prefix: str, tokenizer: TextTokenizer, split: str | None) -> TokenDocuments:
    """The documents of a token file; with a split those that a run with this data.split validates on.

    Of a chat file the answers count, else every token. Raises: UserError, also where it was made with another
    tokenizer.
    """
    manifest = check_token_file_tokenizer(prefix, tokenizer.folder)
    file = TokenFile(prefix)
    supervision = None if manifest.chat is None else Supervision(prefix)
    chosen = np.arange(len(file)) if split is None else split_documents(len(file), split)["validation"]

    def read(document: int) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        number = int(chosen[document])
        tokens = file[number]
        return tokens, np.ones(tokens.size, np.bool_) if supervision is None else supervision.of(number)

    return TokenDocuments(prefix, file_identity(prefix), file.lengths[chosen].astype(np.int64), read)


def encoded_documents(name: str, sha256: str, documents: Sequence[NDArray[np.integer]]) -> TokenDocuments:
    """Documents that were encoded from text: every token counts."""
    lengths = np.array([document.size for document in documents], dtype=np.int64)
    return TokenDocuments(name, sha256, lengths, lambda n: (documents[n], np.ones(documents[n].size, np.bool_)))


def choose_windows(sources: Sequence[TokenDocuments], length: int, most: int) -> tuple[list[WindowPlace], int]:
    """At most `most` windows of up to `length` + 1 tokens, spread evenly over those of all documents.

    Returns: them, and how many there are in all.
    """
    each = [np.maximum(source.lengths + length - 2, 0) // length for source in sources]  # windows of every document
    ends = [np.cumsum(counts) for counts in each]
    before = np.cumsum([0, *(int(end[-1]) if end.size else 0 for end in ends)])
    total = int(before[-1])
    count = min(most, total)
    places = []
    for number in ((2 * index + 1) * total // (2 * count) for index in range(count)):
        source = int(np.searchsorted(before, number, side="right")) - 1
        inside = number - int(before[source])
        document = int(np.searchsorted(ends[source], inside, side="right"))
        nth = inside - int(ends[source][document] - each[source][document])
        places.append(WindowPlace(number, source, document, nth * length))
    return places, total


def read_window(source: TokenDocuments, place: WindowPlace, length: int, tokenizer: TextTokenizer) -> LikelihoodWindow:
    """The window at a place."""
    document, supervised = source.read(place.document)
    end = min(place.start + length + 1, document.size)
    counted = supervised[place.start + 1 : end]
    # Runs of tokens that count: [first, behind the last) pairs.
    edges = np.flatnonzero(np.diff(np.concatenate([[False], counted, [False]]).astype(np.int8))) + place.start + 1
    text_bytes = sum(span_bytes(document, int(a), int(b), tokenizer) for a, b in edges.reshape(-1, 2))
    return LikelihoodWindow(document[place.start : end].astype(np.int64), counted, text_bytes)


def span_bytes(document: NDArray[np.integer], start: int, end: int, tokenizer: TextTokenizer) -> int:
    """UTF-8 bytes of the text of document[start:end].

    Control tokens have none. A character whose bytes lie in several tokens belongs to the span with its last one, so
    that the spans of a document add up to its text.
    """

    def complete_text(first: int, last: int) -> str:
        text = tokenizer.library.decode(document[first:last].tolist(), skip_special_tokens=True)
        # The bytes of a character that is not complete are shown as one sign.
        return text if last == document.size else text.removesuffix(UNFINISHED)

    first = max(start - CHARACTER_TOKENS, 0)  # from where on the character that `start` may lie in is whole
    return len(complete_text(first, end).encode()) - len(complete_text(first, start).encode())
