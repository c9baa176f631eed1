"""Rows of chat files, read: every form, what is refused by name, and what is named as not read."""

import json

import pytest

from data_prep.conversations import PAIRS, Conversation, LeftOut, read_conversation
from data_prep.messages import ROLES
from data_prep.sources import RecordValue
from nld_train.data.chat_template import ChatProblem, Message

ASKED, ANSWERED = Message("user", "hello"), Message("assistant", "four")
USER, ASSISTANT = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "four"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}


def read(value: object, chosen: bool = False) -> Conversation:
    return read_conversation(RecordValue(1, value), chosen)


def turns(*found: dict) -> dict:
    return {"messages": list(found)}


@pytest.mark.parametrize(
    "value",
    [
        turns(USER, ASSISTANT),
        {"messages": [{"role": "human", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
                      {"role": "model", "content": "four", "tool_calls": None}], "tools": []},
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "four"}], "id": None},
        {"conversations": [USER, ASSISTANT]},
        {"messages": json.dumps([USER, ASSISTANT])},
        {"messages": [], "conversations": [USER, ASSISTANT]},
        [USER, ASSISTANT],
        {"instruction": "hello", "output": None, "response": "four"},
        {**turns(USER, ASSISTANT), "tools": "null", "functions": "{}"},
        turns({"role": "user", "content": [{"type": "input_text", "text": "hello"}]}, ASSISTANT),
        {"messages": [{"role": "user", "content": [{"type": "text", "value": "hello"}], "loss_weight": 0.0},
                      {"role": "assistant", "content": [{"type": "text", "value": "four"}], "loss_weight": 1.0}]},
        turns({"role": "user", "value": "hello"}, {"role": "assistant", "text": "four", "content": None}),
        *[{question: "hello", answer: "four"} for question, answer in PAIRS],
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": "hello", "completion": "four", "label": True},
        {**turns(USER, ASSISTANT), "tools": "[]", "images": [], "system": "", "history": None, "weight": 1},
    ],
)  # fmt: skip
def test_every_form_is_read(value: dict) -> None:
    assert read(value) == Conversation((ASKED, ANSWERED))


def test_a_pair_may_have_more_to_its_question_a_system_turn_and_a_history() -> None:
    value = {"instruction": "add", "input": "1 2", "output": "3", "system": "be short", "history": [["hello", "four"]]}
    system, asked, told = Message("system", "be short"), Message("user", "add\n\n1 2"), Message("assistant", "3")
    assert read(value).messages == (system, ASKED, ANSWERED, asked, told)
    short = read(value | {"input": "", "system": None, "history": []})
    assert short.messages == (Message("user", "add"), Message("assistant", "3"))
    context = read({"question": "sum?", "context": "1 2", "answer": "3"})
    assert context.messages[0] == Message("user", "sum?\n\n1 2")


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_text_beside_turns_comes_first(name: str) -> None:
    expected = (Message("system", "rhyme"), ASKED, ANSWERED)
    assert read({**turns(USER, ASSISTANT), name: "rhyme"}).messages == expected
    assert read({**turns({"role": "system", "content": "rhyme"}, USER, ASSISTANT), name: "rhyme"}).messages == expected
    two = [{"role": "system", "content": text} for text in ("rhyme", "other")]
    assert len(read({**turns(*two, USER, ASSISTANT), "id": 1}).messages) == 4  # a template may take both
    with pytest.raises(ChatProblem, match="two system texts that differ"):
        read({**turns({"role": "system", "content": "other"}, USER, ASSISTANT), name: "rhyme"})


def test_every_spelling_of_a_role_is_known() -> None:
    for name, role in ROLES.items():
        content = '{"name": "add", "arguments": "{\\"a\\": 1}"}' if role == "a call" else "x"
        (message,) = read(turns({"role": name, "content": content})).messages
        assert message.role == ("assistant" if role == "a call" else role)
        assert message.calls == ((CALL,) if role == "a call" else ())


@pytest.mark.parametrize("name", ["weight", "train", "loss_weight"])
def test_an_answer_of_weight_0_is_context(name: str) -> None:
    off = Message("assistant", "four", counts=False)
    for weight in (0, 0.0, False):
        assert read(turns(USER, {**ASSISTANT, name: weight}, USER, ASSISTANT)).messages == (ASKED, off, ASKED, ANSWERED)
    for weight in (1, 1.0, True, None):
        assert read(turns(USER, {**ASSISTANT, name: weight})).messages == (ASKED, ANSWERED)
    with pytest.raises(ChatProblem, match=rf"neither 0 nor 1: {name} 0.5"):
        read(turns(USER, {**ASSISTANT, name: 0.5}))
    assert read(turns({**USER, name: 1}, ASSISTANT)).notes == {"weight 1 of turns that are no answers, not supervised"}


def test_answers_in_a_prompt_of_turns_are_context() -> None:
    value = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
    assert [message.counts for message in read(value).messages if message.role == "assistant"] == [False, True]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_keeps_the_name_it_had(name: str) -> None:
    expected = Message("assistant", "four", reasoning="hm", reasoning_key=name)
    assert read(turns(USER, {**ASSISTANT, name: "hm"})).messages == (ASKED, expected)
    assert read({"question": "hello", "answer": "four", name: "hm"}).messages == (ASKED, expected)
    with pytest.raises(ChatProblem, match="reasoning beside a list of turns"):
        read({**turns(USER, ASSISTANT), name: "hm"})


def test_reasoning_may_be_a_part_of_the_content() -> None:
    for part in (
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "reasoning", "value": "hm"},
    ):
        content = [part, {"type": "text", "text": "four"}]
        found = read(turns(USER, {"role": "assistant", "content": content})).messages[1]
        assert (found.reasoning, found.content) == ("hm", "four")


def test_a_mode_of_reasoning_is_no_reasoning() -> None:
    assert read({**turns(USER, ASSISTANT), "reasoning": "on"}) == Conversation(
        (ASKED, ANSWERED), unread=frozenset({"reasoning"})
    )


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": '{"a": 1}'}]},
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"role": "assistant", "content": [{"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'}]},
    ],
)
@pytest.mark.parametrize("result", [{"role": "tool", "content": "3"}, {"from": "observation", "value": "3"},
                                    {"role": "function", "content": 3}])  # fmt: skip
def test_calls_and_results_in_every_form(answer: dict, result: dict) -> None:
    found = read({**turns(USER, answer, result, ASSISTANT), "tools": [TOOL]})
    expected = (ASKED, Message("assistant", None, calls=(CALL,)), Message("tool", "3"), ANSWERED)
    assert found.messages == expected and found.tools == (TOOL,)


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]], json.dumps([TOOL["function"]]),
                                   [json.dumps(TOOL)]])  # fmt: skip
@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools_are_lists_or_json_texts(tools: object, name: str) -> None:
    assert read({**turns(USER, ASSISTANT), name: tools}).tools == (TOOL,)
    system = {"role": "system", "content": "", name: tools}
    assert read(turns(system, USER, ASSISTANT)).tools == (TOOL,)


def test_a_result_may_be_any_json() -> None:
    found = read(
        turns(USER, {"role": "tool", "content": [{"sum": 3}]}, {"role": "tool", "content": {"ü": None}}, ASSISTANT)
    )
    assert [message.content for message in found.messages[1:3]] == ['[{"sum": 3}]', '{"ü": null}']


def test_what_is_filled_and_not_read_is_named() -> None:
    value = {"id": 7, "source": "web", "empty": [], "messages": [{**USER, "date": "x"}, {**ASSISTANT, "mood": None}]}
    assert read(value).unread == {"id", "source", "message date"}


def test_a_field_that_the_template_reads_is_given_to_it() -> None:
    value = {"messages": [{**USER, "name": "Ann", "mood": "good"}, ASSISTANT]}
    found = read_conversation(RecordValue(1, value), template_reads=lambda name: name == "name")
    assert found.messages[0].fields == {"name": "Ann"} and found.unread == {"message mood"}


CHOSEN = {"chosen": "four", "rejected": "five"}


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "hello", **CHOSEN},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "five"}]},
        {"prompt": "hello", "messages": [USER, ASSISTANT], "chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "hello"}], "chosen": {"from": "gpt", "value": "four"},
         "rejected": {"from": "gpt", "value": "five"}},
    ],
)  # fmt: skip
def test_a_preference_is_refused_or_its_better_answer_taken(value: dict) -> None:
    with pytest.raises(ChatProblem, match=r"^a preference, with the fields chosen, rejected: --chosen takes"):
        read(value)
    assert read(value, chosen=True) == Conversation((ASKED, ANSWERED))


@pytest.mark.parametrize("label", [{"label": False}, {"kto_tag": False}, {"label": 0}])
def test_a_bad_row_is_refused_or_left_out(label: dict) -> None:
    with pytest.raises(ChatProblem, match="label false"):
        read({"prompt": "hello", "completion": "four", **label})
    with pytest.raises(LeftOut, match="label false"):
        read({"prompt": "hello", "completion": "four", **label}, chosen=True)


BAD = [
    ([1], "not an object: a JSON list"),
    ({"text": "hello"}, "unknown form: fields text, known are"),
    ({}, "unknown form: fields none"),
    (turns(), "no messages"),
    ({"messages": "hello"}, "no messages"),
    ({"messages": ["hello"]}, "a message is no object"),
    (turns({"content": "hello"}), "a message without a role"),
    (turns({"role": "wizard", "content": "x"}), "unknown role: 'wizard', known are system"),
    (turns({"role": 7, "content": "x"}), "unknown role: 7"),
    (turns({"role": "user", "content": 7}), "a message is no text: int"),
    (turns({"role": "user", "content": [{"type": "image_url"}]}), "an image part without an image: type 'image_url'"),
    (turns({"role": "user", "content": ["hello"]}), "a part of type 'str'"),
    (turns({"role": "user", "content": "\ud800"}), "half a surrogate pair"),
    (turns({"role": "user", "message": "hello"}), "a message without a text: fields message"),
    (turns({"role": "user", "content": "hello", "text": "other"}), "two texts in a message"),
    (turns({"role": "user", "content": [{"type": "text", "data": "hello"}]}), "a part without one text: fields data"),
    (turns({**USER, "images": ["a.png"]}), "field 'images' of a message is not read"),
    (turns({**USER, "reasoning": "hm"}), "reasoning in a turn of user"),
    ({**turns(USER, ASSISTANT), "images": ["a.png"]}, "fewer places for images than images: 0 places, 1 images"),
    ({**turns(USER, ASSISTANT), "context": "1 2"}, "field 'context' beside a list of turns is not read"),
    ({**turns(USER, ASSISTANT), "weight": 0}, "weight 0 of a whole row"),
    ({**turns(USER, ASSISTANT), "weight": 0.3}, "neither 0 nor 1"),
    ({**turns(USER, ASSISTANT), "conversations": [USER]}, "two lists of turns"),
    ({"question": "a", "answer": "b", "history": "long"}, "history is no list"),
    ({"question": "a", "answer": "b", "history": [["one"]]}, "neither turns nor pairs"),
    (turns({"role": "assistant", "content": None, "tool_calls": [{}]}), "a call without the name"),
    (turns({"role": "assistant", "content": None, "tool_calls": "add(1)"}), "calls that are no JSON"),
    ({"question": "hello", "answer": "four", "tools": [{}]}, "a tool without the name"),
    ({"question": "hello", "answer": "four", "tools": "none"}, "tools that are no JSON"),
]


@pytest.mark.parametrize(("value", "said"), BAD)
def test_what_is_no_conversation_says_why_in_one_line(value: object, said: str) -> None:
    with pytest.raises(ChatProblem) as problem:
        read(value)
    assert said in str(problem.value) and "\n" not in str(problem.value)


def test_a_line_that_could_not_be_read_keeps_its_problem() -> None:
    with pytest.raises(ChatProblem, match="^broken JSON: here$"):
        read_conversation(RecordValue(1, problem="broken JSON: here"))
