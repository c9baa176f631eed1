"""Random conversations through all templates of the tests: every word of an answer that counts is supervised, and no
other word is; the text is that of transformers."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.conversations import read_conversation
from data_prep.sources import RecordValue
from nld_train.data.chat_encoder import ChatEncoder, load_chat_encoder
from nld_train.data.chat_template import ChatProblem
from nld_train.data.tokenizer import load_tokenizer
from tests.data.conftest import write_word_tokenizer
from tests.data.own_templates import OWN, spell

EACH = 12  # conversations a template
LOOSE = ["so", "hello\nwhy", "<SPECIAL_21> x", 'q "u"\\', "  lead", "trail \n"]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds up", "parameters": PARAMETERS}}]
SPLIT = [name for name, own in OWN.items() if "*" not in own.refused]


class Author:
    """Writes conversations in which every text begins with a word of its own."""

    def __init__(self, seed: str) -> None:
        self.draw, self.words = random.Random(seed), 0

    def text(self, kind: str) -> str:
        self.words += 1
        return f"{kind}{self.words}_ {self.draw.choice(LOOSE)}"

    def chance(self, share: float) -> bool:
        return self.draw.random() < share

    def answer(self, reasoning: bool, calls: int = 0) -> dict:
        answer: dict = {"role": "assistant", "content": self.text("ans")}
        if calls:
            arguments = [{"a": self.text("arg"), "n": 3} for _ in range(calls)]
            functions = [{"name": "add", "arguments": given} for given in arguments]
            answer["tool_calls"] = [{"id": "c", "type": "function", "function": function} for function in functions]
            answer["content"] = self.draw.choice([None, answer["content"]])
        if reasoning:
            answer |= dict.fromkeys(("reasoning_content", "thinking", "reasoning"), self.text("rsn"))
        return answer

    def row(self, reasons: bool, calls: bool) -> dict:
        turns = [{"role": "system", "content": self.text("sys")}] if self.chance(0.4) else []
        for _ in range(self.draw.randint(1, 3)):
            turns.append({"role": "user", "content": self.text("usr")})
            while calls and self.chance(0.5):
                turns.append(self.answer(reasons and self.chance(0.5), self.draw.randint(1, 2)))
                result = {"role": "tool", "name": "add", "tool_call_id": "c"}
                turns += [result | {"content": self.text("res")} for _ in turns[-1]["tool_calls"]]
            turns.append(self.answer(reasons and self.chance(0.5)) | ({"weight": 0} if self.chance(0.2) else {}))
        return {"messages": turns} | ({"tools": TOOLS} if calls else {})


def words_of(turn: dict) -> Iterator[str]:
    """The words that stand for the texts of a turn."""
    texts = [
        turn["content"],
        turn.get("reasoning"),
        *(c["function"]["arguments"]["a"] for c in turn.get("tool_calls", [])),
    ]
    return (text.split()[0] for text in texts if text)


def check_row(encoder: ChatEncoder, row: dict, library) -> None:
    """Raises ChatProblem where the conversation is refused."""
    conversation = read_conversation(RecordValue(1, row), template_reads=encoder.template.reads)
    found = encoder.conversation(conversation.messages, conversation.tools)
    if encoder.template.date is None:
        given = [{key: value for key, value in turn.items() if key != "weight"} for turn in row["messages"]]
        text = library.apply_chat_template(given, tools=row.get("tools"), tokenize=False)
        assert encoder.tokenizer.decode(found.tokens) == text
    supervised, context = (encoder.tokenizer.decode(found.tokens[found.supervised == on]) for on in (True, False))
    for turn in row["messages"]:
        counts = turn["role"] == "assistant" and "weight" not in turn
        for word in words_of(turn):
            assert counts or word not in supervised
            assert not counts or (word in supervised and word not in context)


@pytest.mark.parametrize("name", SPLIT)
def test_words_of_answers_and_no_others_are_supervised(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    own, taken = OWN[name], 0
    if "outside of the template's generation marks, not" in " ".join(own.notes.values()) and "two" in own.notes:
        pytest.skip("its marks leave answers out")
    folder = write_word_tokenizer(tmp_path / "words")
    (folder / "chat_template.jinja").write_text(spell(own.text))
    encoder, library = load_chat_encoder(load_tokenizer(folder), False), AutoTokenizer.from_pretrained(str(folder))
    author = Author(name)
    for _ in range(EACH):
        try:
            check_row(encoder, author.row(own.thought is not None, own.call is not None), library)
            taken += 1
        except ChatProblem as problem:
            assert "changes the text" not in str(problem), problem
    assert taken
