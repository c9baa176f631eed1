"""A chat template at work: it is rendered exactly as transformers' `apply_chat_template` renders it."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from typing import Any

from nld_train.data.template_files import TEMPLATE, FoundTemplate, find_templates
from nld_train.data.tokenizer import TextTokenizer, named_tokens
from nld_train.errors import UserError

__all__ = ["DEFAULT_TEMPLATE", "TEMPLATE", "ChatProblem", "ChatTemplate", "Message", "load_chat_template"]

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # names under which templates look for reasoning
THINK, END_THINK = "<think>", "</think>"
CLOCK = "strftime_now"  # the function by which a template asks for the time
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

# ChatML of the published family: every turn is a header, its text and an end mark; the first turn is the system's,
# empty where none is given. An answer without a thinking part gets an empty one, with which its prompt ends; one that
# only closes it gets the opening, with which its prompt ends when thinking is on. Tools stand in the system turn, calls
# at the end of an answer. An image is the token that stands for it, in place.
DEFAULT_TEMPLATE = """\
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content or [] -%}
            {{- (image_token | default('[IMG]')) if part['type'] == 'image' else part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system = text_of(messages[0]['content']) -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{{- '<|im_start|>system\\n' + system -}}
{%- if tools -%}
    {{- ('\\n\\n' if system else '') + 'These tools can be called, one described per line:\\n<tools>\\n' -}}
    {%- for tool in tools -%}
        {{- (tool | tojson) + '\\n' -}}
    {%- endfor -%}
    {{- '</tools>\\nA call is written as\\n<tool_call>\\n' -}}
    {{- '{"name": THE NAME OF A TOOL, "arguments": AN OBJECT}\\n</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- for turn in turns -%}
    {%- set content = text_of(turn['content']) -%}
    {{- '<|im_start|>' + turn['role'] + '\\n' -}}
    {%- if turn['role'] == 'assistant' and turn['reasoning_content'] -%}
        {{- '<think>\\n' + turn['reasoning_content'] + '\\n</think>\\n\\n' -}}
    {%- elif turn['role'] == 'assistant' and '</think>' not in content -%}
        {{- '<think></think>' -}}
    {%- elif turn['role'] == 'assistant' and not content.lstrip().startswith('<think>') -%}
        {{- '<think>\\n' -}}
    {%- endif -%}
    {{- content -}}
    {%- for call in turn['tool_calls'] or [] -%}
        {%- set written = {'name': call['function']['name'], 'arguments': call['function']['arguments']} -%}
        {{- ('' if loop.first and not content else '\\n') + '<tool_call>\\n' -}}
        {{- (written | tojson) + '\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if enable_thinking is defined and enable_thinking -%}
        {{- '<think>\\n' -}}
    {%- else -%}
        {{- '<think></think>' -}}
    {%- endif -%}
{%- endif -%}
"""


# The digest of the default template as it was before it knew images. Of texts alone both write the same, so that the
# template, older copies of it in tokenizer folders and chat files made with either go together.
DEFAULT_SHA256 = "abfec0778c57856eebf67558222cdc8ef8d00a350e961d5a50ea45f80a211c98"
IMAGE_TOKEN = "image_token"  # the name under which templates look for the token of an image


@dataclass(frozen=True)
class ImagePlace:
    """An image of a message."""

    place: int  # characters of the content that stand before it
    source: bytes | str | None = None  # as data has it: bytes, or a path or URL; None: the next image of the row


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str  # system, user, assistant, tool
    content: str | None  # None: a turn that only calls tools
    reasoning: str = ""  # of an answer, where it stands beside its content
    reasoning_key: str = REASONING_KEYS[0]  # the name under which the data had it
    calls: tuple[Mapping[str, Any], ...] = ()  # {"type": "function", "function": {"name": ..., "arguments": ...}}
    fields: Mapping[str, object] = field(default_factory=dict)  # what else the data says of it, such as "name"
    counts: bool = True  # False: an answer that is context and is not supervised
    images: tuple[ImagePlace, ...] = ()  # in the order of their places


class ChatProblem(Exception):
    """Why one conversation cannot be used: "reason: detail". It is counted and named with its line, or becomes a
    UserError."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and what it is given besides messages."""

    text: str
    origin: str  # where it was found, for messages
    tokens: tuple[tuple[str, str], ...]  # named tokens of the tokenizer, such as ("bos_token", "<s>")
    thinking: bool  # given to the template as enable_thinking
    tools_text: str | None = None  # the template named "tool_use", taken where a conversation has tools
    date: str | None = None  # YYYY-MM-DD: the day that a template with a clock writes; None: it has no clock
    source: str = ""  # the kind of place where it was found, for the manifest
    image_token: str = "[IMG]"  # given to the template where a conversation has images

    @property
    def sha256(self) -> str:
        """The SHA-256 of the text, and of the template for tools where there is one."""
        if self.text == DEFAULT_TEMPLATE and self.tools_text is None:
            return DEFAULT_SHA256
        return hashlib.sha256("\0".join(filter(None, (self.text, self.tools_text))).encode()).hexdigest()

    @cached_property
    def has_generation_marks(self) -> bool:
        """Whether the template marks by `{% generation %}` what an assistant wrote."""
        return GENERATION.search(self.text) is not None

    @cached_property
    def _known_names(self) -> dict[str, bool]:
        return {}

    def reads(self, name: str) -> bool:
        """Whether the template looks at a field of this name, of a message or of anything else."""
        if name not in self._known_names:
            pattern = rf"""(?:\.|\[\s*['"]|\.get\(\s*['"]|['"]){re.escape(name)}(?![\w-])"""
            self._known_names[name] = re.search(pattern, f"{self.text}{self.tools_text or ''}") is not None
        return self._known_names[name]

    def message_fields(self, message: Message) -> dict[str, Any]:
        """A message as the template is given it.

        Reasoning stands under the name that the data gave it, or under the one that the template reads; in front of the
        content where the template knows only tags. A field that the template does not look at is left out. A content
        with images is a list of typed parts, as templates of vision models know it.
        """
        given: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.images:
            given["content"] = content_parts(message)
        if message.reasoning:
            key = next(filter(self.reads, (message.reasoning_key, *REASONING_KEYS)), None)
            if key is not None:
                given[key] = message.reasoning
            elif END_THINK in self.text:
                given["content"] = f"{THINK}\n{message.reasoning}\n{END_THINK}\n\n{message.content or ''}"
        if message.calls:
            given["tool_calls"] = list(message.calls)
        given.update((name, value) for name, value in message.fields.items() if self.reads(name))
        return given

    def render(self, messages: Sequence[Message], generation_prompt: bool = False, tools: Sequence[object] = ()) -> str:
        """The text of a conversation. Raises ChatProblem where the template refuses it."""
        return self._render(messages, tools, add_generation_prompt=generation_prompt)[0]

    def generation_spans(self, messages: Sequence[Message], tools: Sequence[object] = ()) -> list[tuple[int, int]]:
        """(start, end) in the text of what stands between the template's own `{% generation %}` marks. Raises
        ChatProblem."""
        return self._render(messages, tools, return_assistant_tokens_mask=True)[1]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Any], **asked: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        # Here, not above: importing transformers takes seconds.
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        named: dict[str, Any] = dict(self.tokens)
        if self.date is not None:
            named[CLOCK] = date.fromisoformat(self.date).strftime
        if any(message.images for message in messages):
            named[IMAGE_TOKEN] = self.image_token
        text = self.tools_text if tools and self.tools_text is not None else self.text
        try:
            rendered: Any = render_jinja_template(
                [[self.message_fields(message) for message in messages]],
                tools=list(tools) or None,
                chat_template=text,
                enable_thinking=self.thinking,
                **asked,
                **named,
            )
        except (TemplateError, TypeError, ValueError, KeyError, RecursionError) as error:
            raise ChatProblem(f"the chat template refuses it: {' '.join(str(error).split())}") from error
        return rendered[0][0], rendered[1][0] if rendered[1] else []


def content_parts(message: Message) -> list[dict[str, str]]:
    """A content with images as {"type": "text", "text": ...} and {"type": "image"}, in order."""
    assert message.content is not None, "images stand in a content"
    parts: list[dict[str, str]] = []
    edges = [0, *(image.place for image in message.images), len(message.content)]
    for number, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": message.content[start:end]}] if start < end else []
    return parts


def load_chat_template(tokenizer: TextTokenizer, thinking: bool, day: str | None = None) -> ChatTemplate:
    """The template of a tokenizer folder, as `find_templates` finds it, else ChatML.

    day: YYYY-MM-DD, what a template with a clock is told; None: today. Raises UserError where a template is there but
    cannot be read, or `day` is no date.
    """
    found = find_templates(tokenizer.folder)
    if found is None:
        origin = f"the default ChatML ({tokenizer.folder} has no chat template)"
        found = FoundTemplate(DEFAULT_TEMPLATE, origin, "default ChatML")
    tokens = tuple(named_tokens(tokenizer).items())
    template = ChatTemplate(found.text, found.origin, tokens, thinking, found.tools_text, source=found.source)
    if CLOCK not in f"{found.text}{found.tools_text or ''}":
        return template
    return replace(template, date=check_day(day) if day is not None else date.today().isoformat())


def check_day(day: str) -> str:
    """The day as it was given. Raises UserError where it is no date."""
    try:
        date.fromisoformat(day)
    except ValueError as error:
        raise UserError(f"--date {day}: {error}", "a day as YYYY-MM-DD", "write for example 2026-11-27") from error
    return day
