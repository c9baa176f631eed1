"""Conversations with marks in place of their texts, and the texts put back.

A mark is a number between two private characters. Only marks and control tokens are looked for in what a template
writes, never texts: what a message spells stays text.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nld_train.data.chat_template import END_THINK, THINK, ChatProblem, ImagePlace, Message

MARK = re.compile("\ue000([0-9]+)\ue001")
CONTENT, REASONING, FIELD = "content", "reasoning", "field"  # what a mark stands for


@dataclass(frozen=True)
class Marked:
    """A message with marks in place of its texts."""

    message: Message
    texts: tuple[str, ...]  # what the marks stand for
    first: int  # number of the first mark
    kinds: tuple[str, ...]  # CONTENT, REASONING or FIELD, of every text

    @property
    def key(self) -> object:
        """What two messages share whose texts alone differ."""
        message = self.message
        if not (message.reasoning or message.calls or message.fields):
            return message.role, message.content, message.counts, image_places(message)
        more = (message.reasoning, message.reasoning_key, repr(message.calls), repr(message.fields))
        return message.role, message.content, message.counts, image_places(message), more


@dataclass
class TextStore:
    """The texts that marks stand for, in the order of their numbers."""

    spelled: re.Pattern[str]  # finds marks and control tokens
    texts: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def mark(self, text: str, kind: str) -> str:
        """The mark of a text."""
        self.texts.append(text)
        self.kinds.append(kind)
        return f"\ue000{len(self.texts) - 1}\ue001"

    def mark_pieces(self, pieces: Iterable[tuple[str, str | None]]) -> str:
        """A text cut into (piece, kind), with a mark for every piece that has a kind."""
        return "".join(piece if kind is None else self.mark(piece, kind) for piece, kind in pieces)

    def mark_spelling(self, value: Any) -> Any:
        """A value of JSON with marks for the strings that spell a mark or a control token, and for no others:
        templates look at names and types. Raises ChatProblem for a key that spells one."""
        if isinstance(value, str):
            return self.mark(value, FIELD) if self.spelled.search(value) else value
        if isinstance(value, dict):
            for key in value:
                if self.spelled.search(str(key)):
                    raise ChatProblem(f"a key of a tool spells a control token: {key!r}")
            return {key: self.mark_spelling(found) for key, found in value.items()}
        return [self.mark_spelling(found) for found in value] if isinstance(value, list | tuple) else value


def mark_all(messages: Sequence[Message], store: TextStore) -> list[Marked]:
    """The messages with marks, numbered through; the store gains their texts."""
    marked = []
    for message in messages:
        first = len(store.texts)
        content, images = mark_content(message, store)
        changed = Message(message.role, content, counts=message.counts, images=images)
        if message.reasoning or message.calls or message.fields:
            changed = replace(
                message,
                content=content,
                images=images,
                reasoning=store.mark_pieces(cut_space(message.reasoning, REASONING)),
                calls=tuple(store.mark_spelling(message.calls)),
                fields=store.mark_spelling(dict(message.fields)),
            )
        marked.append(Marked(changed, tuple(store.texts[first:]), first, tuple(store.kinds[first:])))
    return marked


def mark_content(message: Message, store: TextStore) -> tuple[str | None, tuple[ImagePlace, ...]]:
    """A message's content with marks, and the places of its images in it."""
    if message.content is None or not message.images:
        return (None if message.content is None else store.mark_pieces(cut_text(message))), ()
    content, images, start = "", [], 0
    for image in message.images:
        content += store.mark_pieces(cut_space(message.content[start : image.place], CONTENT))
        images.append(replace(image, place=len(content)))
        start = image.place
    return content + store.mark_pieces(cut_space(message.content[start:], CONTENT)), tuple(images)


def image_places(message: Message) -> tuple[int, ...]:
    """Where in its content a message has images."""
    return tuple(image.place for image in message.images)


def cut_text(message: Message) -> list[tuple[str, str | None]]:
    """A message's content cut into (piece, kind of the text that a mark may stand for). White space at its ends and the
    tags of a thinking part are no such texts: templates look at them."""
    assert message.content is not None, "there is no text to cut"
    if message.role != "assistant" or END_THINK not in message.content:
        return cut_space(message.content, CONTENT)
    thinking, answer = message.content.split(END_THINK, 1)
    indent = len(thinking) - len(thinking.lstrip())
    opened = indent + len(THINK) if thinking.startswith(THINK, indent) else 0
    head, tail = cut_space(thinking[opened:], REASONING), cut_space(answer, CONTENT)
    return [(thinking[:opened], None), *head, (END_THINK, None), *tail]


def cut_space(text: str, kind: str) -> list[tuple[str, str | None]]:
    """A text cut into white space, its core with the kind given, and white space."""
    core = text.strip()
    if not core:
        return [(text, None)]
    start = text.index(core)
    return [(text[:start], None), (core, kind), (text[start + len(core) :], None)]


def text_spellings(text: str) -> list[str]:
    """The ways in which templates write a text: as it is, as a JSON string, and as a JSON string in a JSON string."""
    once = json.dumps(text, ensure_ascii=False)[1:-1]
    return list(dict.fromkeys([text, once, json.dumps(once, ensure_ascii=False)[1:-1]]))


def put_back(parts: Sequence[str | int], texts: Sequence[str], rendered: str) -> list[str] | None:
    """What stands for each part, text of the template or the number of a message's text, in the rendered conversation;
    None where the parts do not make it up."""
    found, place = [], 0
    for number, part in enumerate(parts):
        behind = parts[number + 1] if number + 1 < len(parts) else ""
        following = behind if isinstance(behind, str) else ""
        choices = [part] if isinstance(part, str) else text_spellings(texts[part])
        fitting = (c for c in choices if rendered.startswith(c + following, place))
        chosen = next(fitting, None)
        if chosen is None:
            return None
        found.append(chosen)
        place += len(chosen)
    return found if place == len(rendered) else None
