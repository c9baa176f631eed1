"""Packing under two budgets: rows of at most so many tokens, of which at most so many are text.

Rows are filled one after the other. Into each goes, again and again, the document that fits and is largest by the dot
product of what it needs with what is left in the row, both budgets weighed by how scarce they are over all documents
[the dot-product rule of vector bin packing]. So a row that has taken images takes text, and the other way round.

Documents are looked for in a few classes by their share of text, in each the longest that fits: without images it is
first-fit decreasing. A million documents take seconds.
"""

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nld_train.data.packing import PackedRows

CLASSES = 8  # of the share of text


@dataclass
class TextShareClass:
    """The documents whose share of text lies in one range, by length."""

    most_text: float  # the upper end of the range
    lengths: list[int] = field(default_factory=list)  # that documents left have, ascending
    left: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # by length: text and number, most text first

    def longest(self, tokens: int, text: int) -> tuple[int, int] | None:
        """Length and text of the longest document left that surely fits."""
        place = bisect_right(self.lengths, tokens) - 1
        if place >= 0 and self.left[self.lengths[place]][-1][0] > text:  # the one with the least text of its length
            place = (
                bisect_right(self.lengths, min(tokens, int(text / self.most_text) if self.most_text else tokens)) - 1
            )
        if place < 0:
            return None
        length = self.lengths[place]
        return length, self.left[length][-1][0]

    def take(self, length: int) -> int:
        """Take the document that `longest` found out; its number."""
        of_length = self.left[length]
        _, number = of_length.pop()
        if not of_length:
            del self.lengths[bisect_right(self.lengths, length) - 1]
        return number


def pack_two_budgets(
    lengths: NDArray[np.int64], texts: NDArray[np.int64], capacity: int, text_capacity: int
) -> PackedRows:
    """Rows of at most `capacity` tokens, `text_capacity` of them text, for documents of `lengths` [n] tokens with
    `texts` [n] tokens of text."""
    assert lengths.size == 0 or 0 < lengths.min() <= lengths.max() <= capacity, f"lengths must lie in 1..{capacity}"
    assert (texts <= np.minimum(lengths, text_capacity)).all(), f"texts must lie in 0..{text_capacity}"
    classes = _divide_documents(lengths, texts)
    scarcity = lengths.sum() / capacity**3, texts.sum() / text_capacity**3
    row_of = np.empty(lengths.size, np.int64)
    rows = 0
    left = lengths.size
    while left:
        tokens, text = capacity, text_capacity
        while (found := _best_of(classes, tokens, text, scarcity)) is not None:
            chosen, length, needed = found
            row_of[chosen.take(length)] = rows
            tokens, text, left = tokens - length, text - needed, left - 1
        classes = [found for found in classes if found.lengths]
        rows += 1
    starts = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row_of, minlength=rows), out=starts[1:])
    return PackedRows(np.argsort(row_of, kind="stable"), starts)


def _best_of(
    classes: list[TextShareClass], tokens: int, text: int, scarcity: tuple[float, float]
) -> tuple[TextShareClass, int, int] | None:
    """The best document for a row with so much room: its class, length and text."""
    by_length, by_text = scarcity[0] * tokens, scarcity[1] * text
    best, most = None, -1.0
    for candidate in classes:
        found = candidate.longest(tokens, text)
        if found is not None:
            worth = found[0] * by_length + found[1] * by_text
            if worth > most:
                best, most = (candidate, *found), worth
    return best


def _divide_documents(lengths: NDArray[np.int64], texts: NDArray[np.int64]) -> list[TextShareClass]:
    """The documents in classes of their share of text; one class holds those of text alone."""
    number = np.minimum(texts * (CLASSES - 1) // np.maximum(lengths, 1), CLASSES - 1)
    classes = []
    for which in range(CLASSES):
        members = np.flatnonzero(number == which)
        # By length, then most text first, then last number first: documents are taken from the end.
        members = members[np.lexsort((-members, -texts[members], lengths[members]))]
        found = TextShareClass(min((which + 1) / (CLASSES - 1), 1.0))
        for length, text, document in zip(
            lengths[members].tolist(), texts[members].tolist(), members.tolist(), strict=True
        ):
            found.left.setdefault(length, []).append((text, document))
        found.lengths = list(found.left)
        classes.append(found)
    return [found for found in classes if found.lengths]
