"""Packing under two budgets: rows of at most so many tokens, of which at most so many are text.

Rows are filled one after the other. Into each goes, again and again, the document that fits and behind which the row's
shares of room r (tokens) and q (text) are smallest by

    r^2 + q^2 + (r * D_text - q * D_tokens)^2

with D the rows that all documents together would fill by each budget, over the larger of the two. The last term keeps
what is left of a row alike to what is left to place: a row that has taken images takes text, and the other way round.

Documents are looked for in a few classes by their share of text, in each the longest that fits: of text alone it is
first-fit decreasing. A million documents take about ten seconds.
"""

import math
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
            place = bisect_right(self.lengths, min(tokens, int(text / self.most_text))) - 1
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


@dataclass(frozen=True)
class RowBudgets:
    """What a row may hold, and how much of it all documents together ask for."""

    tokens: int
    text: int
    token_demand: float  # the larger of the two is 1
    text_demand: float

    def best_of(self, classes: list[TextShareClass], tokens: int, text: int) -> tuple[TextShareClass, int, int] | None:
        """The best document for a row with so much room: its class, length and text; None where none fits."""
        best, least = None, math.inf
        for candidate in classes:
            found = candidate.longest(tokens, text)
            if found is None:
                continue
            room, text_room = (tokens - found[0]) / self.tokens, (text - found[1]) / self.text
            unlike = room * self.text_demand - text_room * self.token_demand
            cost = room * room + text_room * text_room + unlike * unlike
            if cost < least:
                best, least = (candidate, *found), cost
        return best


def pack_two_budgets(
    lengths: NDArray[np.int64], texts: NDArray[np.int64], capacity: int, text_capacity: int
) -> PackedRows:
    """Rows of at most `capacity` tokens, `text_capacity` of them text, for documents of `lengths` [n] tokens with
    `texts` [n] tokens of text."""
    assert lengths.size == 0 or 0 < lengths.min() <= lengths.max() <= capacity, f"lengths must lie in 1..{capacity}"
    assert (texts <= np.minimum(lengths, text_capacity)).all(), f"texts must lie in 0..{text_capacity}"
    classes = _divide_documents(lengths, texts)
    by_tokens, by_text = int(lengths.sum()) / capacity, int(texts.sum()) / text_capacity
    most = max(by_tokens, by_text, 1e-9)
    budgets = RowBudgets(capacity, text_capacity, by_tokens / most, by_text / most)
    row_of = np.empty(lengths.size, np.int64)
    rows = 0
    left = lengths.size
    while left:
        tokens, text = capacity, text_capacity
        while (found := budgets.best_of(classes, tokens, text)) is not None:
            chosen, length, needed = found
            row_of[chosen.take(length)] = rows
            tokens, text, left = tokens - length, text - needed, left - 1
        classes = [found for found in classes if found.lengths]
        rows += 1
    starts = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row_of, minlength=rows), out=starts[1:])
    return PackedRows(np.argsort(row_of, kind="stable"), starts)


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
