"""Windows of documents: every token counts once, bytes add up to the text, and files of both kinds give the same."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.prepare_text import TextOptions, prepare_text
from nld_train.commands.eval_likelihood import open_documents
from nld_train.data.splits import split_documents
from nld_train.data.tokenizer import TextTokenizer, load_tokenizer
from nld_train.errors import UserError
from nld_train.evaluation.likelihood_windows import (
    choose_windows,
    encoded_documents,
    open_token_file,
    read_window,
    span_bytes,
)
from tests.chat_files import conversation, write_chat_file

TEXTS = [
    "def naïve(größe):\n    return '😀' * größe  # 東京\n" * 3,
    "x",
    "日本語だけの文書。" * 5 + "\ufffd",
    "import os\n",
]


@pytest.fixture(scope="module")
def tokenizer(prepared: Path) -> TextTokenizer:
    return load_tokenizer(prepared / "tokenizer")


def documents_of(texts: list[str], tokenizer: TextTokenizer):
    return encoded_documents("texts", "0", [np.append(tokenizer.encode(text), np.uint16(2)) for text in texts])


@pytest.mark.parametrize("length", [1, 3, 8, 1000])
def test_every_token_but_a_documents_first_counts_once_and_bytes_add_up(tokenizer, length: int) -> None:
    """The tokenizer has 400 tokens: characters of several bytes are cut everywhere."""
    source = documents_of(TEXTS, tokenizer)
    places, total = choose_windows([source], length, 10_000)
    assert len(places) == total and [place.number for place in places] == list(range(total))
    for number, text in enumerate(TEXTS):
        ids = [*tokenizer.encode(text).tolist(), 2]
        windows = [read_window(source, place, length, tokenizer) for place in places if place.document == number]
        assert [token for window in windows for token in window.tokens[1:]] == ids[1:]
        assert all(len(window.tokens) <= length + 1 and window.counted.all() for window in windows)
        assert windows[0].tokens[0] == ids[0]
        ends = [window.tokens[-1] for window in windows[:-1]]
        assert ends == [window.tokens[0] for window in windows[1:]]
        # The first token is a byte of the first character or more: what is not complete in it belongs to the next.
        first = tokenizer.library.decode(ids[:1]).rstrip("\ufffd")
        assert sum(window.text_bytes for window in windows) == len(text.encode()) - len(first.encode())


def test_bytes_of_a_known_text_by_hand(tokenizer) -> None:
    ids = np.append(tokenizer.encode("aé😀"), np.uint16(2))
    assert len(ids) == 8, "a, two bytes of é, four of the face, and the end"
    cuts = {(1, 3): 2, (1, 2): 0, (2, 3): 2, (3, 7): 4, (3, 6): 0, (6, 7): 4, (5, 8): 4, (7, 8): 0, (1, 8): 6}
    assert {cut: span_bytes(ids, *cut, tokenizer) for cut in cuts} == cuts


def test_windows_are_spread_evenly_over_all_sources(tokenizer) -> None:
    sources = [documents_of(["a" * 40] * 10, tokenizer), documents_of(["b" * 40] * 30, tokenizer)]
    everything, total = choose_windows(sources, 5, 10_000)
    some, still = choose_windows(sources, 5, 8)
    assert total == still and [place in everything for place in some] == [True] * 8
    assert [place.source for place in some] == [0, 0, 1, 1, 1, 1, 1, 1]
    gaps = np.diff([place.number for place in some])
    assert gaps.max() - gaps.min() <= 1


def asked(**changes) -> argparse.Namespace:
    return argparse.Namespace(**{"text_key": "text", "held_out": None} | changes)


def test_a_text_file_gives_the_documents_of_its_token_file(prepared, tokenizer, tmp_path) -> None:
    lines = tmp_path / "texts.jsonl"
    lines.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    prepare_text([lines], tmp_path / "made", prepared / "tokenizer", TextOptions(workers=1, text_key="body"))
    made = open_documents(str(tmp_path / "made"), asked(), tokenizer)
    read = open_documents(str(lines), asked(text_key="body"), tokenizer)
    assert made.lengths.tolist() == read.lengths.tolist()
    for number in range(len(TEXTS)):
        assert made.read(number)[0].tolist() == read.read(number)[0].tolist()
        assert made.read(number)[1].all() and read.read(number)[1].all()
    whole = tmp_path / "whole.txt"
    whole.write_text(TEXTS[0])
    one = open_documents(str(whole), asked(), tokenizer)
    assert len(one.lengths) == 1 and one.read(0)[0].tolist() == made.read(0)[0].tolist()


def test_of_a_chat_file_the_answers_count(tokenizer, tmp_path) -> None:
    prefix = write_chat_file(tmp_path / "chat", [conversation(12, prompt=5, seed=1)], tokenizer.fingerprint)
    source = open_token_file(str(prefix), tokenizer, None)
    (first, second), total = choose_windows([source], 6, 10)
    assert total == 2
    window = read_window(source, first, 6, tokenizer)
    assert window.counted.tolist() == [False] * 4 + [True] * 2  # tokens 1 .. 6, of which 5 and 6 are the answer's
    ids = source.read(0)[0]
    assert window.text_bytes == span_bytes(ids, 5, 7, tokenizer)
    assert read_window(source, second, 6, tokenizer).counted.all()


def test_held_out_documents_are_those_that_a_run_validates_on(prepared, tokenizer) -> None:
    prefix = str(prepared / "data" / "b")
    whole, held = (open_token_file(prefix, tokenizer, split) for split in (None, "80,20,0"))
    numbers = split_documents(len(whole.lengths), "80,20,0")["validation"]
    assert 0 < len(numbers) == len(held.lengths) < len(whole.lengths)
    assert held.read(3)[0].tolist() == whole.read(int(numbers[3]))[0].tolist()
    assert held.lengths.tolist() == whole.lengths[numbers].tolist()


BAD = {
    "nothing": ("nowhere", {}, "no nowhere.idx and no file nowhere"),
    "line": ("broken.jsonl", {}, "broken.jsonl:2: no field 'text'"),
    "split of text": ("plain.txt", {"held_out": "9,1,0"}, "--held-out with the text"),
    "tokenizer": ("chat", {}, "was made with tokenizer 000000000000"),
}


@pytest.mark.parametrize(("name", "changes", "said"), BAD.values(), ids=BAD)
def test_bad_data_is_one_line(tokenizer, tmp_path, name: str, changes, said: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.txt").write_text("text")
    Path("broken.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    write_chat_file(Path("chat"), [conversation(12, prompt=5, seed=1)])
    with pytest.raises(UserError, match=said):
        open_documents(name, asked(**changes), tokenizer)
