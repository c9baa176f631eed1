"""The chat template of a tokenizer folder, rendered as transformers' `apply_chat_template` renders it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nld_train.data.tokenizer import CONFIG, TextTokenizer, config_token, read_tokenizer_config
from nld_train.errors import UserError

TEMPLATE = "chat_template.jinja"
TEMPLATE_KEY = "chat_template"  # in tokenizer_config.json, where older folders keep it
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# ChatML of the published family: every turn is a header, its text and an end mark; the first turn is the system's,
# empty where none is given. An answer without a thinking part gets an empty one, with which its prompt ends; one that
# only closes it gets the opening, with which its prompt ends when thinking is on.
DEFAULT_TEMPLATE = """\
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' -}}
{%- for turn in turns -%}
    {{- '<|im_start|>' + turn['role'] + '\\n' -}}
    {%- if turn['role'] == 'assistant' and '</think>' not in turn['content'] -%}
        {{- '<think></think>' -}}
    {%- elif turn['role'] == 'assistant' and not turn['content'].lstrip().startswith('<think>') -%}
        {{- '<think>\\n' -}}
    {%- endif -%}
    {{- turn['content'] + '<|im_end|>\\n' -}}
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


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str  # system, user, assistant, tool
    content: str


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

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The text of a conversation. Raises ChatProblem where the template refuses it."""
        # Here, not above: importing transformers takes seconds.
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        named: dict[str, Any] = dict(self.tokens)
        try:
            rendered: Any = render_jinja_template(
                [[vars(message) for message in messages]],
                chat_template=self.text,
                add_generation_prompt=generation_prompt,
                enable_thinking=self.thinking,
                **named,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ChatProblem(f"the chat template refuses it: {' '.join(str(error).split())}") from error
        return rendered[0][0]


def load_chat_template(tokenizer: TextTokenizer, thinking: bool) -> ChatTemplate:
    """The template of a tokenizer folder: chat_template.jinja, else the key of tokenizer_config.json, else ChatML.

    Raises UserError where one is there but cannot be read.
    """
    config = read_tokenizer_config(tokenizer.folder) if (tokenizer.folder / CONFIG).is_file() else {}
    tokens = tuple((key, token) for key in NAMED_TOKENS if (token := config_token(config, key)) is not None)
    text, origin = find_chat_template(tokenizer.folder, config)
    return ChatTemplate(text, origin, tokens, thinking)


def find_chat_template(folder: Path, config: dict[str, object]) -> tuple[str, str]:
    """Text and origin of a folder's template."""
    path = folder / TEMPLATE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8: {error}", "a Jinja template", "copy the file again") from error
    found = config.get(TEMPLATE_KEY)
    if isinstance(found, list):  # several by name
        found = next((entry.get("template") for entry in found if entry.get("name") == "default"), found)
    if found is None:
        return DEFAULT_TEMPLATE, f"the default ChatML ({folder} has no chat template)"
    if not isinstance(found, str):
        raise UserError(
            f"{folder / CONFIG}: {TEMPLATE_KEY} is a {type(found).__name__} without a default",
            "one Jinja template as a string",
            f"write the template into {path}",
        )
    return found, f"{folder / CONFIG}, key {TEMPLATE_KEY}"
