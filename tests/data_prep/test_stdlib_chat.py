import ast
import json
from pathlib import Path

import pytest

from data_prep.stdlib_chat import ANSWER_CHARACTERS, QUESTION_CHARACTERS, documented_functions, write_stdlib_chat
from nld_train.errors import UserError

SOURCE = '''
class A:
    @property
    def size(self, unit: str = "B") -> int:
        """How large
        it is.

        Details.
        """
        # a reason
        if unit:
            return 1
        return 2

    def silent(self):
        return 0

    def empty(self):
        """Says something."""


def one(x): "short"; return x
'''


def test_a_functions_body_answers_its_signature_and_summary() -> None:
    question = 'def size(self, unit: str = "B") -> int:\n    """How large it is."""'
    assert list(documented_functions(SOURCE)) == [(question, "# a reason\nif unit:\n    return 1\nreturn 2")]


def test_lines_end_where_pythons_do() -> None:
    """A form feed is no line end to the parser, as it is to str.splitlines."""
    marked = "x = 1\n\x0c\n" + SOURCE
    assert list(documented_functions(marked)) == list(documented_functions(SOURCE))


def test_the_machine_has_thousands_of_short_ones_and_the_same_every_time(tmp_path: Path) -> None:
    count = write_stdlib_chat(tmp_path / "a.jsonl")
    assert write_stdlib_chat(tmp_path / "b.jsonl") == count > 2000
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    pairs = [json.loads(line)["messages"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len({user["content"] for user, _ in pairs}) == count
    for user, assistant in pairs:
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert len(user["content"]) <= QUESTION_CHARACTERS and 0 < len(assistant["content"]) <= ANSWER_CHARACTERS
    ast.parse(f"{pairs[0][0]['content']}\n    " + pairs[0][1]["content"].replace("\n", "\n    "))


def test_an_existing_file_stays_and_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        write_stdlib_chat(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"ending in \.jsonl"):
        write_stdlib_chat(tmp_path / "a.json")
    assert (tmp_path / "a.jsonl").read_text() == "mine"
