import pytest

from data_prep.conversations import PAIRS, ROLES, read_conversation
from data_prep.sources import RecordValue
from nld_train.data.chat_template import ChatProblem, Message

ASKED, ANSWERED = Message("user", "hello"), Message("assistant", "four")


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "four"}]},
        {"messages": [{"role": "human", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
                      {"role": "model", "content": "four", "tool_calls": None}], "tools": []},
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "four"}], "id": 7},
        {"conversations": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "four"}]},
        *[{question: "hello", answer: "four"} for question, _, answer in PAIRS],
    ],
)  # fmt: skip
def test_every_form_is_read(value: dict) -> None:
    assert read_conversation(RecordValue(1, value)) == [ASKED, ANSWERED]


def test_a_pair_may_have_more_to_its_question_and_a_system_turn() -> None:
    value = {"instruction": "add", "input": "1 2", "output": "3", "system": "be short"}
    expected = [Message("system", "be short"), Message("user", "add\n\n1 2"), Message("assistant", "3")]
    assert read_conversation(RecordValue(1, value)) == expected
    assert read_conversation(RecordValue(1, value | {"input": "", "system": None})) == [
        Message("user", "add"),
        Message("assistant", "3"),
    ]


def test_every_spelling_of_a_role_is_one_of_four() -> None:
    turns = [{"role": name, "content": "x"} for name in ROLES]
    assert [message.role for message in read_conversation(RecordValue(1, {"messages": turns}))] == list(ROLES.values())
    assert set(ROLES.values()) == {"system", "user", "assistant", "tool"}


BAD = [
    ([1], "not an object: a JSON list"),
    ({"text": "hello"}, "unknown form: fields text, known are"),
    ({}, "unknown form: fields none"),
    ({"messages": []}, "no messages"),
    ({"messages": "hello"}, "no messages"),
    ({"messages": ["hello"]}, "a message is no object"),
    ({"messages": [{"content": "hello"}]}, "a message without a role"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown role: 'wizard', known are system"),
    ({"messages": [{"role": 7, "content": "x"}]}, "unknown role: 7"),
    ({"messages": [{"role": "user", "content": 7}]}, "a message is no text: int"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part of type 'image_url'"),
    ({"messages": [{"role": "user", "content": ["hello"]}]}, "a part of type 'str'"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "half a surrogate pair"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "field 'tool_calls' is not read"),
    ({"question": "hello", "answer": "four", "tools": [{}]}, "field 'tools' is not read"),
]


@pytest.mark.parametrize(("value", "said"), BAD)
def test_what_is_no_conversation_says_why_in_one_line(value: object, said: str) -> None:
    with pytest.raises(ChatProblem) as problem:
        read_conversation(RecordValue(1, value))
    assert said in str(problem.value) and "\n" not in str(problem.value)


def test_a_line_that_could_not_be_read_keeps_its_problem() -> None:
    with pytest.raises(ChatProblem, match="^broken JSON: here$"):
        read_conversation(RecordValue(1, problem="broken JSON: here"))
