"""Conversations whose tools and calls differ share the places of their answers, and get what each gets by itself."""

import random
from pathlib import Path

import pytest

from data_prep.conversations import read_conversation
from data_prep.sources import RecordValue
from nld_train.data.chat_answers import AnswerFinder
from nld_train.data.chat_encoder import ChatEncoder
from nld_train.data.chat_template import ChatProblem, load_chat_template
from nld_train.data.tokenizer import load_tokenizer
from tests.data.conftest import write_word_tokenizer
from tests.data.own_templates import OWN, spell

EACH = 30  # conversations a template
WORDS = ["so", "hello\nwhy", "<SPECIAL_21> x", 'q "u"\\', "  lead", "trail \n", "", "</s>"]
SPLIT = [name for name, own in OWN.items() if "*" not in own.refused]


def draw_row(draw: random.Random) -> dict:
    """A conversation of one of a few shapes, with tools and calls of its own."""
    words = lambda: f"{draw.choice(WORDS)}{draw.randrange(99)}"  # noqa: E731
    names = [f"tool_{draw.randrange(50)}" for _ in range(draw.randint(1, 3))]
    tools = [
        {"type": "function", "function": {"name": name, "description": words(), "parameters": {words(): words()}}}
        if draw.random() < 0.7
        else {"type": "function", "function": {"name": name}}
        for name in names
    ]
    turns: list[dict] = [{"role": "system", "content": "be short"}] if draw.random() < 0.3 else []
    for _ in range(draw.randint(1, 2)):
        turns.append({"role": "user", "content": f"usr {words()}"})
        if draw.random() < 0.7:
            given = {f"key {draw.randrange(9)}": draw.choice([words(), draw.randrange(999), None, [words()]])}
            functions = [{"name": draw.choice(names), "arguments": given} for _ in range(draw.randint(1, 2))]
            calls = [{"id": "c", "type": "function", "function": function} for function in functions]
            turns.append({"role": "assistant", "content": draw.choice([None, "ans"]), "tool_calls": calls})
            turns += [{"role": "tool", "name": "add", "tool_call_id": "c", "content": f"res {words()}"} for _ in calls]
        turns.append({"role": "assistant", "content": f"ans {words()}"})
    return {"messages": turns, "tools": tools}


def encode_row(encoder: ChatEncoder, row: dict) -> tuple[object, ...]:
    """Tokens, supervision and notes, or why it is refused."""
    try:
        conversation = read_conversation(RecordValue(1, row), template_reads=encoder.template.reads)
        found = encoder.conversation(conversation.messages, conversation.tools)
    except ChatProblem as problem:
        return (str(problem),)
    return found.tokens.tolist(), found.supervised.tolist(), dict(found.notes)


@pytest.mark.parametrize("name", SPLIT)
def test_each_gets_what_it_gets_by_itself(tmp_path: Path, name: str) -> None:
    folder = write_word_tokenizer(tmp_path / "words")
    (folder / "chat_template.jinja").write_text(spell(OWN[name].text))
    tokenizer = load_tokenizer(folder)
    template, draw = load_chat_template(tokenizer, thinking=False), random.Random(name)
    shared = ChatEncoder(tokenizer, template, allow_losses=True)
    for number in range(EACH):
        row, alone = draw_row(draw), ChatEncoder(tokenizer, template, allow_losses=True)
        assert encode_row(shared, row) == encode_row(alone, row), number


class CountingFinder(AnswerFinder):
    """Counts how often answers are found anew."""

    searches = 0

    def find_spans(self, *args, **named):  # type: ignore[no-untyped-def]
        self.searches += 1
        return super().find_spans(*args, **named)


def test_answers_are_found_once_for_all_tools_and_calls(tmp_path: Path) -> None:
    folder = write_word_tokenizer(tmp_path / "words")
    tokenizer = load_tokenizer(folder)
    encoder = ChatEncoder(tokenizer, load_chat_template(tokenizer, thinking=False))
    encoder.end_mark()
    encoder.finder = CountingFinder(encoder.template, encoder.pieces, encoder.controls)
    for number in range(40):
        function = {"name": f"find_{number}", "description": f"finds {number}", "parameters": {f"p{number}": number}}
        call = {"type": "function", "function": {"name": f"find_{number}", "arguments": {f"p{number}": number}}}
        turns = [{"role": "user", "content": f"where is {number}?"}, {"role": "assistant", "tool_calls": [call]}]
        row = {"tools": [{"type": "function", "function": function}] * (1 + number % 3), "messages": turns}
        assert len(encode_row(encoder, row)) == 3
    assert encoder.finder.searches == 1
