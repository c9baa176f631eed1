"""Conversations to tokens and supervision, through any chat template that can be split.

A template is a program. Where it puts the texts of a conversation is found in these steps:

1. Render the conversation with a mark in place of every text (chat_marks.py). What is left is what the template wrote
   itself, and control tokens are looked for there alone: what a message spells is text.
2. Find the answers in it, each from the end of its prompt to its last end mark (chat_answers.py). Where the template
   has `{% generation %}` marks of its own, these say what is supervised, and are compared with what was found.
3. Cut it into chunks: control tokens, and stretches of text that are supervised, or not, as a whole. Conversations of
   one shape share the chunks; where their tools or calls differ, the places of their answers (chat_shapes.py).
4. Put the texts back. The whole must be what the template makes of the real conversation, or it is refused. Then every
   stretch of text is tokenised by itself.

A text that the template left out is counted by kind. An answer that lost its own reasoning or a call, or rests on a
tool result that was left out, is refused unless `allow_losses`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nld_train.data.chat_answers import LOST_TOOLS, PROBE, AnswerFinder, AnswerSpan, MarkedText, find_losses
from nld_train.data.chat_marks import MARK, Marked, TextStore, mark_all, put_back
from nld_train.data.chat_shapes import KnownShape, move_spans, shape_key
from nld_train.data.chat_template import END_THINK, THINK, ChatProblem, ChatTemplate, Message, load_chat_template
from nld_train.data.image_tokens import ImageTokens, find_image_tokens
from nld_train.data.token_file import token_dtype
from nld_train.data.tokenizer import FILE, TextTokenizer, parse_tokenizer_file
from nld_train.errors import UserError

PLANS = 4096  # kept: conversations of one shape share a plan
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
    notes: Mapping[str, int]  # what there is to say of such a conversation, with its count


@dataclass(frozen=True)
class EncodedConversation:
    tokens: NDArray[np.integer]  # [n] in the dtype of token files
    supervised: NDArray[np.bool_]  # [n]
    text_bytes: int  # UTF-8, of the rendered conversation
    notes: Mapping[str, int]  # what the template left out, and where it does not end answers as elsewhere
    image_starts: tuple[int, ...] = ()  # the first token of each image


@dataclass
class ChatEncoder:
    """A tokenizer and a template at work."""

    tokenizer: TextTokenizer
    template: ChatTemplate
    last_turn_only: bool = False
    allow_losses: bool = False
    image_tokens: ImageTokens | None = None  # None: the tokenizer has none, and conversations with images are refused
    plans: dict[object, TemplatePlan] = field(default_factory=dict)
    shapes: dict[object, KnownShape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image_tokens is not None:
            self.template = replace(self.template, image_token=self.image_tokens.names[0])
        self.names = self.tokenizer.control_tokens()  # kept: the library lists them anew each time
        self.controls = {name: number for number, name in self.names.items()}
        names = sorted(self.controls, key=len, reverse=True)
        self.pieces = re.compile("|".join([MARK.pattern, *map(re.escape, names)]))
        self.finder = AnswerFinder(self.template, self.pieces, self.controls)

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[object] = (), grids: Sequence[tuple[int, int]] = ()
    ) -> EncodedConversation:
        """Tokens and supervision of a conversation. grids: rows and columns of cells of its images, in order. Raises
        ChatProblem without a supervised answer, with an empty one, where the template cannot be split, and where it
        loses an image or what a supervised answer rests on."""
        answers = [message for message in messages if message.role == "assistant"]
        if not answers:
            raise ChatProblem("no answer: the assistant says nothing")
        counted = [message for message in (answers[-1:] if self.last_turn_only else answers) if message.counts]
        if not counted:
            raise ChatProblem("no supervised answer: all of them have weight 0")
        for message in answers:
            if message.counts and not message.calls:
                check_answer(message.content or "")
        return self._encode(messages, tools, prompt=False, grids=grids)

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[object] = (), grids: Sequence[tuple[int, int]] = ()
    ) -> NDArray[np.integer]:
        """Tokens [n] of a conversation that asks for an answer. Raises ChatProblem."""
        return self._encode(messages, tools, prompt=True, grids=grids).tokens

    def end_mark(self) -> int:
        """The control id that ends a turn of the assistant: the last one that the ends of all answers of a small
        conversation begin with, or, where they have none in common, the last one of a conversation's end. Raises
        ChatProblem."""
        return self._end_of_turn

    @cached_property
    def _end_of_turn(self) -> int:
        marked = mark_all(PROBE, TextStore(self.pieces))
        whole = MarkedText(self.template.render([item.message for item in marked]), marked)
        *_, last = ends = [span.ends for span in self.finder.find_spans(whole, (), last_only=False)]
        shared = 0
        while all(len(end) > shared and end[shared] == last[shared] for end in ends):
            shared += 1
        return last[(shared or len(last)) - 1]

    def plan(self, marked: Sequence[Marked], tools: Sequence[object], prompt: bool) -> TemplatePlan:
        """The plan of all conversations that are alike but for what the marks stand for."""
        key = (prompt, repr(tools) if tools else None, *(item.key for item in marked))
        if key not in self.plans:
            if len(self.plans) >= PLANS:
                self.plans.clear()
            self.plans[key] = self._make_plan(marked, tools, prompt)
        return self.plans[key]

    def _encode(
        self, messages: Sequence[Message], tools: Sequence[object], prompt: bool, grids: Sequence[tuple[int, int]]
    ) -> EncodedConversation:
        store = TextStore(self.pieces)
        marked = mark_all(messages, store)
        spelled_tools = store.mark_spelling(list(tools)) if tools else ()
        plan = self.plan(marked, spelled_tools, prompt)
        rendered = self.template.render(messages, prompt, tools)
        spelled = self._spell(plan, store.texts, rendered)
        ids = iter(
            self.tokenizer.encode_all([s for s, c in zip(spelled, plan.chunks, strict=True) if c.control is None])
        )
        rows = [[chunk.control] if chunk.control is not None else next(ids) for chunk in plan.chunks]
        starts = self._expand_images(plan, rows, grids)
        tokens = np.array([token for row in rows for token in row], dtype=token_dtype(self.tokenizer.vocab_size))
        supervised = np.repeat([chunk.supervised for chunk in plan.chunks], [len(row) for row in rows])
        if tokens.size and supervised[0]:
            raise ChatProblem("nothing stands before the answer")
        return EncodedConversation(tokens, supervised, len(rendered.encode()), plan.notes, starts)

    def _expand_images(
        self, plan: TemplatePlan, rows: list[list[int]], grids: Sequence[tuple[int, int]]
    ) -> tuple[int, ...]:
        """Put the tokens of each image in place of the one that stands for it; the first token of each. rows: the
        tokens of each chunk. Raises ChatProblem where the template writes fewer or more images than there are."""
        if self.image_tokens is None:
            if grids:
                raise ChatProblem("an image, and the tokenizer has no tokens for it: --image-tokens names them")
            return ()
        places = [number for number, chunk in enumerate(plan.chunks) if chunk.control == self.image_tokens.image]
        if len(places) != len(grids):
            names = f"{len(places)} of {len(grids)} images as {self.image_tokens.names[0]}"
            raise ChatProblem(f"the chat template does not write every image once: {names}")
        if any(plan.chunks[place].supervised for place in places):
            raise ChatProblem("an answer that holds an image")
        for place, grid in zip(places, grids, strict=True):
            rows[place] = self.image_tokens.expand(*grid)
        begins = np.cumsum([0, *map(len, rows)])
        return tuple(int(begins[place]) for place in places)

    def _spell(self, plan: TemplatePlan, texts: Sequence[str], rendered: str) -> list[str]:
        """What stands in each chunk of a rendered conversation. Raises ChatProblem where the plan does not make it."""
        spelled = ["".join(texts[p] if isinstance(p, int) else p for p in chunk.parts) for chunk in plan.chunks]
        if "".join(spelled) == rendered:
            return spelled
        found = put_back([part for chunk in plan.chunks for part in chunk.parts], texts, rendered)
        if found is None:
            raise ChatProblem("the chat template changes the text of a message")
        pieces = iter(found)
        return ["".join(next(pieces) for _ in chunk.parts) for chunk in plan.chunks]

    def _end_notes(self, spans: Sequence[AnswerSpan]) -> Counter[str]:
        """How many answers end otherwise than a turn does."""
        names, end = self.names, self.end_mark()
        return Counter(
            f"answers that end with {' '.join(names[number] for number in span.ends) or 'no control token'}"
            f", not with {names[end]}"
            for span in spans
            if end not in span.ends
        )

    def _make_plan(self, marked: Sequence[Marked], tools: Sequence[object], prompt: bool) -> TemplatePlan:
        messages = [item.message for item in marked]
        text = self.template.render(messages, prompt, tools)
        if prompt:
            return TemplatePlan(tuple(self._chunks(text, [])), {})
        whole = MarkedText(text, marked)
        spans = self._find_spans(whole, tools)
        notes, harmful = find_losses(whole, tools, {span.message for span in spans})
        if tools and text == self.template.render(messages):  # a name in a call is no description
            notes[LOST_TOOLS] = 1
        if harmful and not self.allow_losses:
            raise ChatProblem(f"{harmful[0]}: --allow-losses takes it all the same")
        stretches = [(span.start, span.end) for span in spans]
        if self.template.has_generation_marks:
            stretches = self._generation_stretches(whole, tools, spans, notes)
        self._check_inside(text, spans)
        return TemplatePlan(tuple(self._chunks(text, stretches)), notes + self._end_notes(spans))

    def _find_spans(self, whole: MarkedText, tools: Sequence[object]) -> Sequence[AnswerSpan]:
        """The supervised answers, by those of a conversation of the same shape where there was one. Raises
        ChatProblem."""
        key = shape_key(whole.marked, tools)
        moved = move_spans(self.shapes[key], whole, self.pieces) if key in self.shapes else None
        if moved is not None:
            return moved
        found = self.finder.find_spans(whole, tools, self.last_turn_only)
        if len(self.shapes) >= PLANS:
            self.shapes.clear()
        self.shapes[key] = KnownShape(whole.text, found)
        return found

    def _generation_stretches(
        self, whole: MarkedText, tools: Sequence[object], spans: Sequence[AnswerSpan], notes: Counter[str]
    ) -> list[tuple[int, int]]:
        """What stands between the template's own marks of answers that count. Differences from ours are noted."""
        theirs = self.template.generation_spans([item.message for item in whole.marked], tools)
        used = []
        for span in spans:
            mine = [(start, end) for start, end in theirs if start < span.end and end > span.start]
            used += mine
            if not mine:
                notes["answers outside of the template's generation marks, not supervised"] += 1
            elif mine[-1][1] < span.end:
                notes["answers with end marks outside of the template's generation marks, not supervised"] += 1
            elif mine != [(span.start, span.end)] and whole.text[mine[0][0] : mine[-1][1]].strip() != (
                whole.text[span.start : span.end].strip()
            ):
                notes["answers whose generation marks differ from prompt and end marks"] += 1
        if not used:
            raise ChatProblem("the chat template's generation marks leave out every answer")
        return used

    def _check_inside(self, text: str, spans: Sequence[AnswerSpan]) -> None:
        """Raise ChatProblem where the token that ends a turn also stands inside of an answer: generation would stop
        there."""
        end = self.end_mark()
        for span in spans:
            found = self.pieces.finditer(text, span.start, span.text_end)
            if end in (self.controls[piece[0]] for piece in found if not piece[1]) or span.ends.count(end) > 1:
                raise ChatProblem(f"the token that ends answers stands inside of one: {self.names[end]}")

    def _chunks(self, text: str, stretches: Sequence[tuple[int, int]]) -> list[TemplateChunk]:
        """A marked text cut into control tokens and stretches that are supervised, or not, as a whole."""
        chunks: list[TemplateChunk] = []
        for place, part, control in self._parts(text, {edge for stretch in stretches for edge in stretch}):
            supervised = any(start <= place < end for start, end in stretches)
            joins = chunks and control is None and chunks[-1].control is None and chunks[-1].supervised == supervised
            before = chunks.pop().parts if joins else ()
            chunks.append(TemplateChunk((*before, part), control, supervised))
        return chunks

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


def check_answer(text: str) -> None:
    """Raise ChatProblem for an answer that says nothing behind its thinking part."""
    if text.lstrip().startswith(THINK) and END_THINK not in text:
        raise ChatProblem(f"empty answer: {THINK} without {END_THINK}")
    if not text.split(END_THINK, 1)[-1].strip():
        raise ChatProblem("empty answer")


def load_chat_encoder(
    tokenizer: TextTokenizer,
    thinking: bool,
    last_turn_only: bool = False,
    allow_losses: bool = False,
    day: str | None = None,
    image_names: tuple[str, str, str] | None = None,
) -> ChatEncoder:
    """The encoder of a tokenizer folder, tried on a small conversation.

    day: YYYY-MM-DD, what a template with a clock is told; None: today. image_names: the tokens of images, as in
    `find_image_tokens`. Raises UserError where the template is broken, cannot be split, or does not go with the
    tokenizer.
    """
    template, images = load_chat_template(tokenizer, thinking, day), find_image_tokens(tokenizer, image_names)
    encoder = ChatEncoder(tokenizer, template, last_turn_only, allow_losses, images)
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
