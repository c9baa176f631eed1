"""Where the answers of a conversation lie in what a template made of it, and which texts the template left out.

The conversation is rendered with marks in place of its texts. An answer is supervised from its start to its end:

1. It starts behind its prompt, which is what the template writes when it is asked for an answer at that point. Where
   the answer does not begin with the prompt, it starts with what its author wrote.
2. Its text ends with its last mark, or with the name of its last call where that stands behind.
3. What follows up to the next turn's start is its end: all of it, up to the last control token in it. The next turn
   starts with the control token that opens a prompt, or where the same answer at the end of a conversation is followed
   by something else.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from nld_train.data.chat_marks import CONTENT, FIELD, MARK, REASONING, Marked, text_spellings
from nld_train.data.chat_template import THINK, ChatProblem, ChatTemplate, Message

LOST_TEXT = {
    "system": "system text not written by this template",
    "user": "user text not written by this template",
    "tool": "tool results not written by this template",
    "assistant": "earlier answers not written by this template",
}
LOST_REASONING = "reasoning removed from answers"
LOST_CALLS = "calls removed from answers"
LOST_TOOLS = "tools not written by this template"
PROBE = (
    Message("user", "What is two and two?"),
    Message("assistant", "It is four."),
    Message("user", "And three and three?"),
    Message("assistant", "It is six."),
)


@dataclass(frozen=True)
class AnswerSpan:
    """A supervised stretch of the marked text."""

    message: int
    start: int
    text_end: int  # behind the answer's own text
    end: int  # behind the last of its end marks
    ends: tuple[int, ...]  # the control ids of its end


@dataclass(frozen=True)
class PlacedMark:
    """A mark in a rendered conversation."""

    start: int
    end: int
    message: int
    kind: str


@dataclass(frozen=True)
class MarkedText:
    """A conversation as the template wrote it, with the marks that stand in it."""

    text: str
    marked: Sequence[Marked]

    @cached_property
    def marks(self) -> tuple[PlacedMark, ...]:
        """The marks in the order of the text; those of tools, which are numbered behind all messages, belong to
        message -1."""
        first = self.marked[0].first
        owners = dict(
            enumerate(((number, kind) for number, item in enumerate(self.marked) for kind in item.kinds), first)
        )
        found = ((mark.span(), owners.get(int(mark[1]), (-1, FIELD))) for mark in MARK.finditer(self.text))
        return tuple(PlacedMark(*span, *owner) for span, owner in found)

    def missing_kinds(self, message: int) -> set[str]:
        """Kinds of a message's texts that do not stand in the text."""
        item = self.marked[message]
        return {kind for number, kind in enumerate(item.kinds, item.first) if number not in self._numbers}

    @cached_property
    def _numbers(self) -> frozenset[int]:
        return frozenset(int(mark[1]) for mark in MARK.finditer(self.text))

    def first_mark(self, message: int) -> PlacedMark | None:
        """The first mark of a message, None where none stands in the text."""
        return next((mark for mark in self.marks if mark.message == message), None)

    def part_of(self, message: int) -> tuple[int, int, int] | None:
        """(floor, end, limit) of an answer: its text ends at `end`, no other message's text lies between `floor` and
        `limit`. None where the answer does not stand in the text."""
        item = self.marked[message]
        own = [mark for mark in self.marks if mark.message == message and mark.kind != REASONING]
        if not own and (CONTENT in item.kinds or not item.message.calls):
            return None
        if own:
            first, end = own[0].start, own[-1].end
        else:
            first = end = max((mark.end for mark in self.marks if mark.message <= message), default=0)
        others = [mark for mark in self.marks if mark.message != message]
        floor = max((mark.end for mark in others if mark.end <= first), default=0)
        limit = min((mark.start for mark in others if mark.start >= end), default=len(self.text))
        place = floor
        for name in names_of(item.message.calls):
            found = self.text.find(name, place, limit)
            place = place if found < 0 else found + len(name)
        return floor, max(end, place), limit


@dataclass
class AnswerFinder:
    """Finds the answers in what one template writes."""

    template: ChatTemplate
    pieces: re.Pattern[str]  # marks, with the number as group 1, and control tokens
    controls: Mapping[str, int]  # id by name

    def find_spans(self, whole: MarkedText, tools: Sequence[object], last_only: bool) -> list[AnswerSpan]:
        """The supervised answers of a marked text, in order. Raises ChatProblem."""
        answers = [number for number, item in enumerate(whole.marked) if item.message.role == "assistant"]
        chosen = answers[-1:] if last_only else answers
        spans = [self._find_span(whole, tools, number) for number in chosen if whole.marked[number].message.counts]
        if any(before.end > after.start for before, after in zip(spans, spans[1:], strict=False)):
            raise ChatProblem("the chat template changes the order of answers")
        return spans

    @cached_property
    def openers(self) -> frozenset[str]:
        """The control token that starts a turn, or none: the one with which the template asks for an answer, or with
        which it does so at the end of every conversation, asked or not."""
        try:
            told, asked = (self.template.render(PROBE[:1], ask) for ask in (False, True))
            text = PROBE[1].content or ""
            alone, followed = (self.template.render(PROBE[:count]).partition(text)[2] for count in (2, 3))
        except ChatProblem:
            return frozenset()
        if asked != told:
            added = self._leading_controls(asked.removeprefix(told)) if asked.startswith(told) else []
            closing = self._leading_controls(alone)
            return frozenset([name for name in added if name not in closing][:1])
        shared = self._shared_controls(alone, followed)
        rest = alone[shared[-1].end() :].lstrip() if shared else ""
        # The same control token, then another role's name: it opens turns, and the template always opens one more.
        opens = len(shared) > 1 and rest and not self.pieces.match(rest)
        return frozenset({shared[-1][0]} if opens else ())

    def _leading_controls(self, text: str) -> list[str]:
        """The control tokens with which a text begins, white space aside."""
        names = []
        while found := self.pieces.match(text.lstrip()):
            names.append(found[0])
            text = text.lstrip()[found.end() :]
        return names

    def _find_span(self, whole: MarkedText, tools: Sequence[object], number: int) -> AnswerSpan:
        part = whole.part_of(number)
        if part is None:
            raise ChatProblem("the chat template leaves out an answer")
        _, text_end, limit = part
        start = self._start(whole, tools, number, text_end)
        ends = self._ends(whole, tools, number, text_end, limit)
        if ends:
            ids = tuple(self.controls[found[0]] for found in ends)
            return AnswerSpan(number, start, text_end, text_end + ends[-1].end(), ids)
        if limit == len(whole.text):
            raise ChatProblem("no control token of the tokenizer ends an answer")
        behind = self.pieces.search(whole.text, text_end)  # the mark of the next message, if nothing else
        assert behind is not None, "a mark stands at the limit"
        calls = whole.text[text_end : behind.start()].rstrip() if whole.marked[number].message.calls else ""
        return AnswerSpan(number, start, text_end, text_end + len(calls), ())

    def _ends(
        self, whole: MarkedText, tools: Sequence[object], number: int, text_end: int, limit: int
    ) -> list[re.Match[str]]:
        """The control tokens behind an answer, up to the next turn's start (step 3 above)."""
        tail = whole.text[text_end:limit]
        controls = list(self.pieces.finditer(tail))
        opening = next((place for place, found in enumerate(controls) if found[0] in self.openers), None)
        if opening is not None:
            return controls[:opening]
        if number == len(whole.marked) - 1:
            return controls
        until = whole.marked[: number + 1]
        try:
            alone = MarkedText(self.template.render([item.message for item in until], tools=tools), until)
        except ChatProblem:  # a conversation may not end here
            return controls[:1]
        part = alone.part_of(number)
        return controls[:1] if part is None else self._shared_controls(tail, alone.text[part[1] :])

    def _shared_controls(self, one: str, other: str) -> list[re.Match[str]]:
        """The control tokens with which two tails begin alike, as found in the first one."""
        shared: list[re.Match[str]] = []
        done = 0
        for mine, theirs in zip(self.pieces.finditer(one), self.pieces.finditer(other), strict=False):
            if one[done : mine.end()] != other[done : theirs.end()]:
                break
            shared.append(mine)
            done = mine.end()
        return shared

    def _start(self, whole: MarkedText, tools: Sequence[object], number: int, text_end: int) -> int:
        """Where an answer starts (step 1 above)."""
        text, item = whole.text, whole.marked[number]
        prompt = self._prompt(whole.marked[:number], tools)
        if prompt is not None and text.startswith(prompt):
            return len(prompt)
        first = whole.first_mark(number)
        if first is None or item.message.reasoning:
            return self._start_behind_header(whole, tools, number, text_end if first is None else first.start)
        content = item.message.content or ""
        lead = content.partition("\ue000")[0] if first.kind == item.kinds[0] else ""
        if text.endswith(lead, 0, first.start):
            return first.start - len(lead)
        tag, bare = lead.strip(), text[: first.start].rstrip() if lead.strip() else text[: first.start]
        if bare.endswith(tag):  # the template changed the white space
            return len(bare) - len(tag)
        raise ChatProblem("the chat template changes how an answer begins")

    def _prompt(self, before: Sequence[Marked], tools: Sequence[object]) -> str | None:
        """What the template writes when it is asked for an answer; None where it writes the same without being asked,
        or refuses to end there."""
        messages = [item.message for item in before]
        if not messages:
            return None
        try:
            asked = self.template.render(messages, generation_prompt=True, tools=tools)
            return asked if asked != self.template.render(messages, tools=tools) else None
        except ChatProblem:
            return None

    def _start_behind_header(self, whole: MarkedText, tools: Sequence[object], number: int, place: int) -> int:
        """Where an answer starts that begins with reasoning or a call at `place`, and not with its prompt: behind the
        header that the template writes at that point in front of a plain text."""
        begin = max((mark.end for mark in whole.marks if mark.end <= place and mark.message != number), default=0)
        mine = whole.text[begin:place]
        plain = Message("assistant", f"\ue000{whole.marked[number].first}\ue001")
        known = [*whole.marked[:number], Marked(plain, ("",), whole.marked[number].first, (CONTENT,))]
        other = MarkedText(self.template.render([item.message for item in known], tools=tools), known)
        mark = other.first_mark(number)
        if mark is None:
            raise ChatProblem("the chat template leaves out an answer")
        ahead = max((found.end for found in other.marks if found.end <= mark.start), default=0)
        header = other.text[ahead : mark.start]
        alike = next(
            (place for place, (one, two) in enumerate(zip(mine, header, strict=False)) if one != two),
            min(len(mine), len(header)),
        )
        cut = next(
            (found.start() for found in self.pieces.finditer(mine) if found.start() < alike < found.end()), alike
        )
        kept = mine[:cut].rstrip()
        return begin + (len(kept) - len(THINK) if kept.endswith(THINK) else cut)


def find_losses(
    whole: MarkedText, tools: Sequence[object], supervised: Collection[int]
) -> tuple[Counter[str], list[str]]:
    """What the template left out of a conversation: counts by kind, and reasons to refuse it, where an answer of
    `supervised` (numbers of messages) rests on what was lost."""
    found: Counter[str] = Counter()
    harmful: list[str] = []
    for number, item in enumerate(whole.marked):
        role, missing = item.message.role, whole.missing_kinds(number)
        if CONTENT in missing:
            found[LOST_TEXT[role]] = 1
            if role == "tool" and any(answer > number for answer in supervised):
                harmful.append("the chat template leaves out a tool result that an answer rests on")
        if REASONING in missing:
            found[LOST_REASONING] += 1
            if number in supervised:
                harmful.append("the chat template removes the reasoning of an answer")
        if role == "assistant" and item.message.calls and not _writes_calls(whole, number):
            found[LOST_CALLS] += 1
            if number in supervised:
                harmful.append("the chat template leaves out a call of an answer")
    if not all(is_written(text, whole.text) for tool in tools for text in _described(tool)):
        found[LOST_TOOLS] = 1
    return found, harmful


def _writes_calls(whole: MarkedText, number: int) -> bool:
    """Whether the names and the texts of an answer's calls stand in its part of the text."""
    part = whole.part_of(number)
    if part is None:
        return False
    text = whole.text[part[0] : part[2]]
    return all(
        is_written(value, text) for call in whole.marked[number].message.calls for value in strings_of(call["function"])
    )


def _described(tool: object) -> list[str]:
    """Name and description of a tool."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return [function[key] for key in ("name", "description") if isinstance(function.get(key), str)]


def names_of(tools: Sequence[object]) -> list[str]:
    """The names of the functions in a list of tools or of calls."""
    inner = [tool.get("function", tool) for tool in tools if isinstance(tool, Mapping)]
    return [str(function["name"]) for function in inner if isinstance(function, Mapping) and function.get("name")]


def strings_of(value: object) -> list[str]:
    """Every string in a value of JSON; keys of objects are left out."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in strings_of(inner)]
    return [text for inner in value for text in strings_of(inner)] if isinstance(value, list | tuple) else []


def is_written(value: str, text: str) -> bool:
    """Whether a string stands in a text, in one of the ways in which templates write it."""
    return any(spelling.strip() in text for spelling in text_spellings(value))
