"""One conversation of a chat file, token by token: what counts, where blocks begin, and one draw of the noise."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.text import Text

from nld_train.config import DiffusionConfig, require
from nld_train.data.manifest import check_token_file_tokenizer
from nld_train.data.supervision import Supervision
from nld_train.data.token_file import TokenFile
from nld_train.data.tokenizer import UNFINISHED, TextTokenizer, load_tokenizer, printable_text
from nld_train.noise.blocks import row_block_ids
from nld_train.noise.corrupt import corrupt_row
from nld_train.types import Row

BORDER, MASK = "│", "▒"
STYLES = {
    "context": "dim",
    "supervised": "bold green",
    "control": "magenta",
    "border": "yellow",
    "masked": "black on yellow",
}
PAGE_STYLE = """
  :root { color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --muted: #59636e; --panel: #f6f8fa;
    --counts: #d6f2df; --mask: #c4620a; --border: #2f6fd0 }
  @media (prefers-color-scheme: dark) { :root { --page: #0d1117; --ink: #e6edf3; --muted: #9aa4af; --panel: #161b22;
    --counts: #124a2a; --mask: #f0953f; --border: #5c9bf5 } }
  body { margin: 0 auto; padding: 32px 24px; max-width: 1080px; background: var(--page); color: var(--ink);
    font: 15px/1.5 system-ui, sans-serif }
  h1 { font-size: 22px } h2 { font-size: 16px; margin: 28px 0 8px }
  pre { background: var(--panel); padding: 14px 16px; border-radius: 6px; white-space: pre-wrap; font-size: 14px;
    line-height: 1.9; overflow-wrap: anywhere }
  .context { color: var(--muted) } .supervised { background: var(--counts) } .control { font-style: italic }
  .masked { background: var(--mask); color: var(--mask); border-radius: 2px }
  .first { border-left: 2px solid var(--border) }
"""


@dataclass(frozen=True)
class ShownToken:
    """One token of the conversation."""

    text: str
    supervised: bool
    control: bool
    masked: bool  # in this draw
    p: float  # with this probability
    block: int


@dataclass(frozen=True)
class ConversationView:
    """A conversation and what is said above it."""

    shown_tokens: list[ShownToken]
    title: str
    facts: str
    noise: str


def view_conversation(
    prefix: str | Path, tokenizer_folder: str | Path, number: int, config: DiffusionConfig
) -> ConversationView:
    """Conversation `number` of a chat file, with the noise that row `number` of a run would have.

    Raises: UserError where the file is no whole chat file of this tokenizer, or has no such conversation.
    """
    manifest = check_token_file_tokenizer(prefix, tokenizer_folder)
    require(manifest.chat is not None, f"{prefix} is plain text", "a file of `nld data prepare-chat`", "name one")
    total = manifest.documents
    require(0 <= number < total, f"--conversation {number}", f"0 to {total - 1}", "choose one of them")
    shown = view_tokens(
        TokenFile(prefix)[number], Supervision(prefix).of(number), number, load_tokenizer(tokenizer_folder), config
    )
    counting, masked = sum(token.supervised for token in shown), sum(token.masked for token in shown)
    levels = sorted({token.p for token in shown})
    spread = f"{levels[0]:.2f}" if len(levels) == 1 else f"{levels[0]:.2f} to {levels[-1]:.2f}"
    return ConversationView(
        shown,
        f"Conversation {number} of {prefix} (0 to {total - 1:,})",
        f"{len(shown):,} tokens, {counting:,} supervised ({counting / len(shown):.0%}), "
        f"{shown[-1].block + 1:,} blocks of {config.block_size}",
        f"One draw of the noise ({config.noise_law}, seed {config.noise_seed}): p = {spread}, "
        f"{masked:,} of {counting:,} supervised tokens masked",
    )


def view_tokens(
    tokens: NDArray[np.integer],
    supervised: NDArray[np.bool_],
    number: int,
    tokenizer: TextTokenizer,
    config: DiffusionConfig,
) -> list[ShownToken]:
    """Every token of a conversation, `tokens` and `supervised` [n], as the first of its row."""
    filler = np.zeros(1, dtype=np.int64)  # a row holds the token behind its last one
    row = Row(
        number,
        torch.from_numpy(np.append(tokens.astype(np.int64), filler)),
        torch.from_numpy(np.append(supervised, False)),
    )
    noisy = corrupt_row(row, config, "train", 1)
    controls = tokenizer.control_tokens()
    blocks = row_block_ids(len(tokens), config.block_size)
    columns = (
        token_texts(tokens, tokenizer),
        supervised.tolist(),
        [token in controls for token in tokens.tolist()],
        noisy.masked.tolist(),
        noisy.p.tolist(),
        blocks.tolist(),
    )
    return [ShownToken(*values) for values in zip(*columns, strict=True)]


def token_texts(tokens: NDArray[np.integer], tokenizer: TextTokenizer) -> list[str]:
    """The text of every token; of the tokens that share a character, the last one has it."""
    found, start = [], 0
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[start:end])
        waits = text.endswith(UNFINISHED) and end < len(tokens) and end - start < 4  # bytes of a character
        found.append("" if waits else text)
        start = start if waits else end
    return found


def conversation_text(view: ConversationView, coloured: bool) -> Text:
    """For the terminal. Without colour, supervised stretches stand in brackets."""
    text = Text(f"{view.title}\n{view.facts}\n")
    text.append("context", STYLES["context"])
    text.append(" supervised", STYLES["supervised"])
    text.append(" control token", STYLES["control"])
    text.append(f" {BORDER} a block begins\n\n" + ("" if coloured else "⟦ ⟧ supervised\n\n"), STYLES["border"])
    for piece, style in text_parts(view, noisy=False, brackets=not coloured):
        text.append(piece, style)
    text.append(f"\n\n{view.noise}\n\n")
    for piece, style in text_parts(view, noisy=True, brackets=not coloured):
        text.append(piece, style)
    return text


def text_parts(view: ConversationView, noisy: bool, brackets: bool) -> Iterator[tuple[str, str]]:
    """(text, style) of the clean or the noisy conversation."""
    before = None
    for place in view.shown_tokens:
        if brackets and before is not None and before.supervised and not place.supervised:
            yield "⟧", ""
        if before is not None and place.block != before.block:
            yield BORDER, STYLES["border"]
        if brackets and place.supervised and not (before and before.supervised):
            yield "⟦", ""
        masked = noisy and place.masked
        yield hidden_text(place.text) if masked else printable_text(place.text), STYLES[token_kind(place, masked)]
        before = place
    if brackets and before is not None and before.supervised:
        yield "⟧", ""


def hidden_text(text: str) -> str:
    """As long as the text, and with its line ends."""
    return re.sub(r"[^\n]", MASK, text if text.strip("\n") else f" {text}")


def token_kind(place: ShownToken, masked: bool) -> str:
    if masked:
        return "masked"
    return "supervised" if place.supervised else "control" if place.control else "context"


def conversation_html(view: ConversationView) -> str:
    """A page that needs no other file."""
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(view.title)}</title>',
            f"<style>{PAGE_STYLE}</style></head><body>",
            f"<h1>{escape(view.title)}</h1><p>{escape(view.facts)}</p>",
            '<p><span class="context">context</span> &nbsp; <span class="supervised">supervised</span> &nbsp; '
            '<span class="control">control token</span> &nbsp; <span class="first">&nbsp;a block begins</span> &nbsp; '
            'masked: <span class="masked">&nbsp;mask&nbsp;</span></p>',
            f"<h2>As trained</h2><pre>{html_parts(view, noisy=False)}</pre>",
            f"<h2>{escape(view.noise)}</h2><pre>{html_parts(view, noisy=True)}</pre>",
            "</body></html>\n",
        ]
    )


def html_parts(view: ConversationView, noisy: bool) -> str:
    found = []
    for number, place in enumerate(view.shown_tokens):
        names = ["supervised" if place.supervised else "context"]
        names += ["control"] if place.control else []
        names += ["masked"] if noisy and place.masked else []
        names += ["first"] if number and place.block != view.shown_tokens[number - 1].block else []
        title = f"token {number}, block {place.block}" + (
            f", masked with p = {place.p:.2f}" if place.supervised else ""
        )
        found.append(f'<span class="{" ".join(names)}" title="{title}">{escape(place.text)}</span>')
    return "".join(found)
