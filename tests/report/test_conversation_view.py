"""One conversation as it is shown."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
import torch

from data_prep.prepare_chat import ChatOptions, prepare_chat
from data_prep.prepare_text import TextOptions, prepare_text
from nld_train.config import DiffusionConfig
from nld_train.data.supervision import Supervision
from nld_train.data.token_file import TokenFile
from nld_train.data.tokenizer import load_tokenizer
from nld_train.errors import UserError
from nld_train.noise.corrupt import corrupt_row
from nld_train.report.conversation_view import (
    BORDER,
    MASK,
    conversation_html,
    conversation_text,
    token_texts,
    view_conversation,
)
from nld_train.types import Row

ANSWER = "return len(<b>) # Grüße 🌍\n"


@pytest.fixture(scope="module")
def chat(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat file of two conversations with the shared tokenizer."""
    folder = tmp_path_factory.mktemp("chat")
    asked = {"role": "user", "content": "def size():"}
    lines = [{"messages": [asked, {"role": "assistant", "content": text}]} for text in ("pass", ANSWER)]
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare_chat([folder / "a.jsonl"], folder / "chat", prepared / "tokenizer", ChatOptions(workers=1))
    return folder / "chat"


def test_every_token_has_its_text_supervision_block_and_noise(chat: Path, prepared: Path) -> None:
    config = DiffusionConfig(block_size=4)
    view = view_conversation(chat, prepared / "tokenizer", 1, config)
    tokens, supervised = TokenFile(chat)[1], Supervision(chat).of(1)
    assert "".join(place.text for place in view.shown_tokens) == load_tokenizer(prepared / "tokenizer").decode(tokens)
    assert [place.supervised for place in view.shown_tokens] == supervised.tolist()
    assert [place.block for place in view.shown_tokens] == [number // 4 for number in range(len(tokens))]
    row = Row(1, torch.tensor([*tokens.tolist(), 0]), torch.tensor([*supervised.tolist(), False]))
    noisy = corrupt_row(row, config, "train", 1)
    assert [place.masked for place in view.shown_tokens] == noisy.masked.tolist()
    assert [place.p for place in view.shown_tokens] == noisy.p.tolist() and noisy.masked.any()
    counting = int(supervised.sum())
    assert view.facts.startswith(f"{len(tokens)} tokens, {counting} supervised (")
    assert f"{int(noisy.masked.sum())} of {counting} supervised tokens masked" in view.noise


def test_without_colour_brackets_say_what_counts(chat: Path, prepared: Path) -> None:
    view = view_conversation(chat, prepared / "tokenizer", 1, DiffusionConfig(block_size=8))
    shown = conversation_text(view, coloured=False).plain
    clean = shown.split("\n\n")[2].replace(BORDER, "")
    assert re.findall("⟦([^⟧]*)⟧", clean) == [f"{ANSWER}<|im_end|>"]
    assert clean.replace("⟦", "").replace("⟧", "") == "".join(place.text for place in view.shown_tokens).rstrip("\n")
    masked = [place for place in view.shown_tokens if place.masked]
    assert shown.count(BORDER) == 1 + 2 * view.shown_tokens[-1].block
    assert shown.count(MASK) == sum(max(1, len(place.text.replace("\n", ""))) for place in masked) > 0


def test_in_colour_context_supervised_and_masked_differ(chat: Path, prepared: Path) -> None:
    text = conversation_text(
        view_conversation(chat, prepared / "tokenizer", 1, DiffusionConfig(block_size=8)), coloured=True
    )
    assert "⟦" not in text.plain
    assert {"dim", "bold green", "magenta", "yellow", "black on yellow"} <= {str(span.style) for span in text.spans}


def test_the_page_says_the_same_and_needs_nothing_else(chat: Path, prepared: Path) -> None:
    view = view_conversation(chat, prepared / "tokenizer", 1, DiffusionConfig(block_size=8))
    html = conversation_html(view)
    clean, noisy = html.split("<h2>")[1:]
    for part in (clean, noisy):
        assert unescape(re.sub("<[^>]*>", "", part.split("<pre>")[1].split("</pre>")[0])) == "".join(
            place.text for place in view.shown_tokens
        )
    assert not any("masked" in names for names in re.findall('<span class="([^"]*)"', clean))
    spans = re.findall('<span class="([^"]*)"', noisy)
    assert ["masked" in names.split() for names in spans] == [place.masked for place in view.shown_tokens]
    assert sum("first" in names.split() for names in spans) == view.shown_tokens[-1].block
    assert "http" not in html and "<script" not in html


def test_tokens_that_share_a_character_show_it_once(prepared: Path) -> None:
    tokenizer = load_tokenizer(prepared / "tokenizer")
    tokens = tokenizer.encode("a🌍é")
    assert token_texts(tokens, tokenizer) == ["a", "", "", "", "🌍", "", "é"]


def test_what_is_no_chat_file_or_not_in_it_is_refused(chat: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--conversation 2; allowed: 0 to 1"):
        view_conversation(chat, prepared / "tokenizer", 2, DiffusionConfig())
    (tmp_path / "a.txt").write_text("plain")
    prepare_text([tmp_path / "a.txt"], tmp_path / "plain", prepared / "tokenizer", TextOptions(workers=1))
    with pytest.raises(UserError, match="is plain text"):
        view_conversation(tmp_path / "plain", prepared / "tokenizer", 0, DiffusionConfig())
