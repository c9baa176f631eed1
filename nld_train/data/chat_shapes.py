"""Conversations of one shape: alike but for their tools and for what their calls say. Where the answers of one of them
lie was found by asking the template many times; in another one they lie at the same places between the same marks and
control tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nld_train.data.chat_answers import AnswerSpan, MarkedText
from nld_train.data.chat_marks import Marked, image_places


@dataclass(frozen=True)
class KnownShape:
    """A conversation whose answers were found."""

    text: str  # as the template wrote it, with marks
    spans: Sequence[AnswerSpan]


def shape_key(marked: Sequence[Marked], tools: Sequence[object]) -> object:
    """What conversations of one shape share."""
    messages = [item.message for item in marked]
    return (
        bool(tools),
        *(
            (item.kinds, message.role, message.content, message.counts, image_places(message))
            for item, message in zip(marked, messages, strict=True)
        ),
        *((message.reasoning, message.reasoning_key, repr(message.fields)) for message in messages),
        *(len(message.calls) for message in messages),
    )


def move_spans(known: KnownShape, whole: MarkedText, pieces: re.Pattern[str]) -> list[AnswerSpan] | None:
    """The supervised answers of a conversation of a known shape; None where they are to be found anew, because marks,
    control tokens or the text around an answer's edge are others than in the known conversation.

    pieces: finds marks and control tokens.
    """
    edges = _Edges(known.text, whole.text, pieces)
    moved = []
    for span in known.spans:
        part = whole.part_of(span.message)
        start, end = edges.place_of(span.start), edges.place_of(span.end)
        if part is None or start is None or end is None or not start <= part[1] <= end:
            return None
        moved.append(replace(span, start=start, text_end=part[1], end=end))
    return moved


class _Edges:
    """Places in one text, found again in another one by the marks and control tokens around them."""

    def __init__(self, before: str, after: str, pieces: re.Pattern[str]) -> None:
        self.before, self.after = before, after
        self.mine, self.theirs = list(pieces.finditer(before)), list(pieces.finditer(after))
        names, others = [found[0] for found in self.mine], [found[0] for found in self.theirs]
        # Tools may bring control tokens of their own, in front of all answers: then only what follows them is alike.
        self.tail = 0
        while self.tail < min(len(names), len(others)) and names[-1 - self.tail] == others[-1 - self.tail]:
            self.tail += 1
        self.same = names == others

    def place_of(self, edge: int) -> int | None:
        """Where an edge of the first text lies in the second one."""
        behind = sum(found.end() <= edge for found in self.mine)  # pieces that end before the edge
        if not self.same and len(self.mine) - behind >= self.tail:
            return None
        begin = self.mine[behind - 1].end() if behind else 0
        place = behind + len(self.theirs) - len(self.mine)
        other = self.theirs[place - 1].end() if place else 0
        literal = self.before[begin:edge]
        return other + len(literal) if self.after.startswith(literal, other) else None
