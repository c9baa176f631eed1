"""Many templates: the text is that of transformers, the supervision follows a rule stated here, and losses are told."""

import json
from pathlib import Path

import pytest

from data_prep.conversations import read_conversation
from data_prep.sources import RecordValue
from nld_train.data.chat_encoder import ChatEncoder, load_chat_encoder
from nld_train.data.chat_template import ChatProblem
from nld_train.data.tokenizer import load_tokenizer
from nld_train.errors import UserError
from tests.data.conftest import write_word_tokenizer
from tests.data.own_templates import OWN, Own, spell

REASON = {"reasoning_content": "hm so", "thinking": "hm so", "reasoning": "hm so"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"so": 'hi "bye"', "four": 4}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds <SPECIAL_21>", "parameters": {}}}
FIRST, SECOND = [("user", "hello"), ("assistant", "four")], [("user", "and why"), ("assistant", "bye")]


def said(*turns: tuple[str, str | None], **more: object) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


def thinking(row: dict) -> dict:
    return {"messages": [turn | (REASON if turn["role"] == "assistant" else {}) for turn in row["messages"]]}


CONVERSATIONS: dict[str, dict] = {
    "one": said(*FIRST),
    "two": said(*FIRST, *SECOND),
    "spelled": said(("user", "hello <SPECIAL_21>\n<SPECIAL_20>assistant"), ("assistant", "four <SPECIAL_21> </s>")),
    "system": said(("system", "so"), *FIRST),
    "thought": thinking(said(*FIRST)),
    "thoughts": thinking(said(*FIRST, *SECOND)),
    "tagged": said(("user", "hello"), ("assistant", "<think>\nhm so\n</think>\n\nfour")),
    "called": said(("user", "hello"), ("assistant", None), ("tool", 'so\n"so"'), ("assistant", "bye"), tools=[TOOL]),
}
CONVERSATIONS["called"]["messages"][1]["tool_calls"] = [CALL]
CONVERSATIONS["called"]["messages"][2] |= {"name": "add", "tool_call_id": "c1"}


def expected(own: Own, name: str) -> list[str] | None:
    """The supervised stretches, by the rule of the template; None where the template has none for this conversation."""
    mid, ends = own.ends if own.mid is None else own.mid, own.ends
    last = "bye" + ends
    return {
        "one": ["four" + ends],
        "two": [last] if "outside" in own.notes.get(name, "") else ["four" + mid, last],
        "spelled": ["four <SPECIAL_21> </s>" + ends],
        "system": ["four" + ends],
        "thought": None if own.thought is None else [own.thought + ends],
        "thoughts": None if own.thought is None else [own.thought + mid, own.thought.replace("four", "bye") + ends],
        "tagged": ["<think>\nhm so\n</think>\n\nfour" + ends],
        "called": None if own.call is None else [own.call, last],
    }[name]


def stretches(encoder: ChatEncoder, found) -> list[str]:
    """The text of every supervised stretch."""
    edges = [
        place for place, counts in enumerate(found.supervised) if counts != found.supervised[place - 1] or not place
    ]
    parts = zip(edges, [*edges[1:], len(found.tokens)], strict=True)
    return [encoder.tokenizer.decode(found.tokens[a:b]) for a, b in parts if found.supervised[a]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_word_tokenizer(tmp_path_factory.mktemp("own") / "words")


def test_there_are_enough() -> None:
    assert len(OWN) >= 40 and len({own.text for own in OWN.values()}) == len(OWN)


@pytest.mark.parametrize("name", OWN)
def test_text_supervision_and_losses(folder: Path, name: str) -> None:
    from transformers import AutoTokenizer

    own = OWN[name]
    (folder / "chat_template.jinja").write_text(spell(own.text))
    if "*" in own.refused:
        with pytest.raises(UserError, match=own.refused["*"]):
            load_chat_encoder(load_tokenizer(folder), thinking=False)
        return
    encoder = load_chat_encoder(load_tokenizer(folder), thinking=False)
    theirs = AutoTokenizer.from_pretrained(str(folder))
    for kind, row in CONVERSATIONS.items():
        wanted, where = expected(own, kind), f"{name}, {kind}"
        conversation = read_conversation(RecordValue(1, row), template_reads=encoder.template.reads)
        if kind in own.refused or wanted is None:
            with pytest.raises(ChatProblem, match=own.refused.get(kind, "reasoning|a call|an answer|refuses it")):
                encoder.conversation(conversation.messages, conversation.tools)
            continue
        found = encoder.conversation(conversation.messages, conversation.tools)
        if encoder.template.date is None:
            text = theirs.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False)
            assert encoder.tokenizer.decode(found.tokens) == text, where
        assert stretches(encoder, found) == [spell(stretch) for stretch in wanted], where
        note = own.notes.get(kind, own.notes.get("*"))
        assert (note is None and not found.notes) or set(found.notes) == {spell(note or "")}, where


def test_a_clock_says_what_it_is_told(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(spell(OWN["clock"].text))
    encoder = load_chat_encoder(load_tokenizer(folder), thinking=False, day="2024-02-29")
    conversation = read_conversation(RecordValue(1, CONVERSATIONS["one"]))
    text = encoder.tokenizer.decode(encoder.conversation(conversation.messages).tokens)
    assert "29 February 2024, 00:00" in text
    with pytest.raises(UserError, match="2024-02-30"):
        load_chat_encoder(load_tokenizer(folder), thinking=False, day="2024-02-30")


def test_losses_can_be_allowed_and_are_counted(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(spell(OWN["cut at the tag"].text))
    encoder = load_chat_encoder(load_tokenizer(folder), thinking=False, allow_losses=True)
    for kind, lost in (("tagged", 1), ("thoughts", 2)):
        conversation = read_conversation(RecordValue(1, CONVERSATIONS[kind]))
        assert encoder.conversation(conversation.messages).notes == {"reasoning removed from answers": lost}


def test_rows_are_json(folder: Path) -> None:
    """What the rows above hold is what a line of a file can hold."""
    assert json.loads(json.dumps(CONVERSATIONS)) == CONVERSATIONS
