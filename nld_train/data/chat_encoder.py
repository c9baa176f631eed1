"""Conversations to tokens and supervision, through any chat template that can be split.

A template is a program: where it puts a message's text is found by rendering the conversation with a mark in place of
every text. The marked text shows what the template wrote itself; putting the texts back must give what the template
makes of the real conversation, or the conversation is refused. So control tokens come from the template alone, and what
a message spells is text.

An answer counts from the end of its prompt (what the template writes when asked for an answer at that point) to the
first control token behind it, its end mark.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nld_train.data.chat_template import ChatProblem, ChatTemplate, Message, load_chat_template
from nld_train.data.token_file import token_dtype
from nld_train.data.tokenizer import FILE, TextTokenizer, parse_tokenizer_file
from nld_train.errors import UserError

MARK = re.compile("\ue000([0-9]+)\ue001")  # private characters: only marks are looked for, never texts
THINK, END_THINK = "<think>", "</think>"
PLANS = 4096  # kept: conversations of one shape share a plan
PROBE = (
    Message("user", "What is two and two?"),
    Message("assistant", "It is four."),
    Message("user", "And three and three?"),
    Message("assistant", "It is six."),
)
ALLOWED = "a Jinja chat template that writes every message as it is and ends answers with a control token"


@dataclass(frozen=True)
class TemplateChunk:
    """A stretch of the rendered conversation that is tokenised by itself."""

    parts: tuple[str | int, ...]  # text of the template, or the number of a message's text
    control: int | None  # the id, where the stretch is one control token
    supervised: bool


@dataclass(frozen=True)
class TemplatePlan:
    """What the template makes of every conversation of one shape."""

    chunks: tuple[TemplateChunk, ...]
    end_marks: frozenset[int]  # control ids that end supervised answers


@dataclass(frozen=True)
class MarkedMessage:
    """A message with marks in place of its texts."""

    message: Message
    texts: tuple[str, ...]  # what the marks stand for
    first: int  # number of the first mark


@dataclass(frozen=True)
class EncodedConversation:
    tokens: NDArray[np.integer]  # [n] in the dtype of token files
    supervised: NDArray[np.bool_]  # [n]
    text_bytes: int  # UTF-8, of the rendered conversation


@dataclass
class ChatEncoder:
    """A tokenizer and a template at work."""

    tokenizer: TextTokenizer
    template: ChatTemplate
    last_turn_only: bool = False
    plans: dict[object, TemplatePlan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.controls = {name: number for number, name in self.tokenizer.control_tokens().items()}
        names = sorted(self.controls, key=len, reverse=True)
        self.pieces = re.compile("|".join([MARK.pattern, *map(re.escape, names)]))

    def conversation(self, messages: Sequence[Message]) -> EncodedConversation:
        """Tokens and supervision of a conversation. Raises ChatProblem without an answer, with an empty one, and where
        the template cannot be split."""
        answers = [message for message in messages if message.role == "assistant"]
        if not answers:
            raise ChatProblem("no answer: the assistant says nothing")
        for message in answers:
            check_answer(message.content)
        return self._encode(messages, prompt=False)

    def prompt(self, messages: Sequence[Message]) -> NDArray[np.integer]:
        """Tokens [n] of a conversation that asks for an answer. Raises ChatProblem."""
        return self._encode(messages, prompt=True).tokens

    def end_mark(self) -> int:
        """The control id that ends an answer. Raises ChatProblem."""
        ends = self.plan(mark_messages(PROBE), prompt=False).end_marks
        if len(ends) != 1:
            raise ChatProblem(f"answers end with different control tokens: {sorted(ends)}")
        return next(iter(ends))

    def plan(self, marked: Sequence[MarkedMessage], prompt: bool) -> TemplatePlan:
        key = (prompt, *((item.message.role, item.message.content) for item in marked))
        if key not in self.plans:
            if len(self.plans) >= PLANS:
                self.plans.clear()
            self.plans[key] = self._make_plan(marked, prompt)
        return self.plans[key]

    def _encode(self, messages: Sequence[Message], prompt: bool) -> EncodedConversation:
        marked = mark_messages(messages)
        plan = self.plan(marked, prompt)
        texts = [text for item in marked for text in item.texts]
        spelled = ["".join(texts[p] if isinstance(p, int) else p for p in chunk.parts) for chunk in plan.chunks]
        whole = "".join(spelled)
        if whole != self.template.render(messages, prompt):
            raise ChatProblem("the chat template changes the text of a message")
        ids = iter(
            self.tokenizer.encode_all([s for s, c in zip(spelled, plan.chunks, strict=True) if c.control is None])
        )
        rows = [[chunk.control] if chunk.control is not None else next(ids) for chunk in plan.chunks]
        tokens = np.array([token for row in rows for token in row], dtype=token_dtype(self.tokenizer.vocab_size))
        supervised = np.repeat([chunk.supervised for chunk in plan.chunks], [len(row) for row in rows])
        if tokens.size and supervised[0]:
            raise ChatProblem("nothing stands before the answer")
        return EncodedConversation(tokens, supervised, len(whole.encode()))

    def _make_plan(self, marked: Sequence[MarkedMessage], prompt: bool) -> TemplatePlan:
        text = self.template.render([item.message for item in marked], prompt)
        spans = [] if prompt else self._spans(text, marked)
        starts = {start for start, _, _ in spans}
        chunks: list[TemplateChunk] = []
        for place, part, control in self._parts(text, starts):
            supervised = any(start <= place < end for start, end, _ in spans)
            joins = chunks and control is None and chunks[-1].control is None and chunks[-1].supervised == supervised
            before = chunks.pop().parts if joins else ()
            chunks.append(TemplateChunk((*before, part), control, supervised))
        return TemplatePlan(tuple(chunks), frozenset(control for _, _, control in spans))

    def _parts(self, text: str, cuts: set[int]) -> Iterator[tuple[int, str | int, int | None]]:
        """(place, part, control id or None) of a marked text, in order; the template's own text is cut at `cuts`."""
        done = 0
        for found in [*self.pieces.finditer(text), None]:
            upto = len(text) if found is None else found.start()
            edges = [done, *sorted(cut for cut in cuts if done < cut < upto), upto]
            yield from ((a, text[a:b], None) for a, b in zip(edges, edges[1:], strict=False) if a < b)
            if found is not None:
                done, number = found.end(), found[1]
                yield (upto, int(number), None) if number else (upto, found[0], self.controls[found[0]])

    def _spans(self, text: str, marked: Sequence[MarkedMessage]) -> list[tuple[int, int, int]]:
        """(start, end, end mark) of every supervised answer in a marked text."""
        answers = [number for number, item in enumerate(marked) if item.message.role == "assistant"]
        spans = [self._span(text, marked, number) for number in (answers[-1:] if self.last_turn_only else answers)]
        if any(before[1] > after[0] for before, after in zip(spans, spans[1:], strict=False)):
            raise ChatProblem("the chat template changes the order of answers")
        return spans

    def _span(self, text: str, marked: Sequence[MarkedMessage], number: int) -> tuple[int, int, int]:
        item = marked[number]
        places = {int(found[1]): found.span() for found in MARK.finditer(text)}
        last = item.first + len(item.texts) - 1
        if last not in places:
            raise ChatProblem("the chat template leaves out an answer")
        end = next((found for found in self.pieces.finditer(text, places[last][1])), None)
        if end is None or end[1]:
            raise ChatProblem("no control token of the tokenizer ends an answer")
        start = self._start(text, marked, number, places)
        return start, end.end(), self.controls[end[0]]

    def _start(
        self, text: str, marked: Sequence[MarkedMessage], number: int, places: dict[int, tuple[int, int]]
    ) -> int:
        """Where an answer starts: behind its prompt; where it does not begin with that, with what its author wrote."""
        item = marked[number]
        before = [earlier.message for earlier in marked[:number]]
        if before:
            prompt = self.template.render(before, generation_prompt=True)
            if text.startswith(prompt) and prompt != self.template.render(before):
                return len(prompt)
        first = next(mark for mark in range(item.first, item.first + len(item.texts)) if mark in places)
        place = places[first][0]
        lead = item.message.content.partition("\ue000")[0] if first == item.first else ""
        if text.endswith(lead, 0, place):
            return place - len(lead)
        tag, bare = lead.strip(), text[:place].rstrip() if lead.strip() else text[:place]
        if bare.endswith(tag):  # the template changed the white space
            return len(bare) - len(tag)
        raise ChatProblem("the chat template changes how an answer begins")


def mark_messages(messages: Sequence[Message]) -> list[MarkedMessage]:
    """The messages with marks, numbered through."""
    marked, first = [], 0
    for message in messages:
        pieces = split_message_text(message)
        texts = [piece for piece, is_text in pieces if is_text]
        numbers = iter(range(first, first + len(texts)))
        content = "".join(f"\ue000{next(numbers)}\ue001" if is_text else piece for piece, is_text in pieces)
        marked.append(MarkedMessage(Message(message.role, content), tuple(texts), first))
        first += len(texts)
    return marked


def split_message_text(message: Message) -> list[tuple[str, bool]]:
    """A message's text cut into (piece, whether a mark may stand for it). White space at its ends and the tags of a
    thinking part are no such pieces: templates look at them."""
    if message.role != "assistant" or END_THINK not in message.content:
        return split_off_space(message.content)
    thinking, answer = message.content.split(END_THINK, 1)
    indent = len(thinking) - len(thinking.lstrip())
    opened = indent + len(THINK) if thinking.startswith(THINK, indent) else 0
    return [
        (thinking[:opened], False),
        *split_off_space(thinking[opened:]),
        (END_THINK, False),
        *split_off_space(answer),
    ]


def split_off_space(text: str) -> list[tuple[str, bool]]:
    core = text.strip()
    if not core:
        return [(text, False)]
    start = text.index(core)
    return [(text[:start], False), (core, True), (text[start + len(core) :], False)]


def check_answer(text: str) -> None:
    """Raise ChatProblem for an answer that says nothing behind its thinking part."""
    if text.lstrip().startswith(THINK) and END_THINK not in text:
        raise ChatProblem(f"empty answer: {THINK} without {END_THINK}")
    if not text.split(END_THINK, 1)[-1].strip():
        raise ChatProblem("empty answer")


def load_chat_encoder(tokenizer: TextTokenizer, thinking: bool, last_turn_only: bool = False) -> ChatEncoder:
    """The encoder of a tokenizer folder, tried on a small conversation.

    Raises UserError where the template is broken, cannot be split, or does not go with the tokenizer.
    """
    encoder = ChatEncoder(tokenizer, load_chat_template(tokenizer, thinking), last_turn_only)
    try:
        encoder.end_mark()
        supervised = encoder.conversation(PROBE)
        encoder.prompt(PROBE[:1])
    except ChatProblem as error:
        do = "correct it, or use a tokenizer folder whose files belong together"
        raise UserError(f"{encoder.template.origin}: {error}", ALLOWED, do) from error
    check_split_tokenisation(encoder, supervised.tokens)
    return encoder


def check_split_tokenisation(encoder: ChatEncoder, split: NDArray[np.integer]) -> None:
    """Raise UserError where a conversation tokenised in parts is not its text tokenised at once.

    Before and in an answer the parts may be other tokens, because the answer begins a token; their text may not.
    """
    tokenizer, template = encoder.tokenizer, encoder.template
    library = parse_tokenizer_file(tokenizer.folder / FILE)
    asked, told = (library.encode(template.render(PROBE, ask), add_special_tokens=False).ids for ask in (True, False))
    same = encoder.prompt(PROBE).tolist() == asked and tokenizer.decode(split) == tokenizer.decode(np.array(told))
    if not same:
        raise UserError(
            f"{tokenizer.folder / FILE} changes the text around control tokens",
            "control tokens that neither strip nor add white space, as in the published family",
            "use another tokenizer",
        )
