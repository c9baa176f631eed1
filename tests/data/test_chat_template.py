import json
from pathlib import Path

import pytest

from nld_train.data.chat_template import DEFAULT_TEMPLATE, ChatProblem, Message, load_chat_template
from nld_train.data.tokenizer import load_tokenizer
from nld_train.errors import UserError

ASKED = [Message("user", "hello")]


def write_config(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_file_comes_before_the_key_and_the_key_before_the_default(byte_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    assert load_chat_template(tokenizer, False).text == DEFAULT_TEMPLATE
    write_config(byte_tokenizer, chat_template="key")
    assert load_chat_template(tokenizer, False).render(ASKED) == "key"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "one of many"}]
    write_config(byte_tokenizer, chat_template=named)
    assert load_chat_template(tokenizer, False).render(ASKED) == "one of many"
    (byte_tokenizer / "chat_template.jinja").write_text("file")
    template = load_chat_template(tokenizer, False)
    assert template.render(ASKED) == "file" and template.origin.endswith("chat_template.jinja")


def test_the_template_sees_the_named_tokens_and_the_thinking_flag(byte_tokenizer: Path) -> None:
    text = "{{ bos_token }}{{ eos_token }}{{ enable_thinking }}{{ add_generation_prompt }}"
    (byte_tokenizer / "chat_template.jinja").write_text(text)
    assert load_chat_template(load_tokenizer(byte_tokenizer), True).render(ASKED, True) == "<s></s>TrueTrue"
    assert load_chat_template(load_tokenizer(byte_tokenizer), False).render(ASKED) == "<s></s>FalseFalse"


def test_other_texts_have_other_hashes(byte_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    before = load_chat_template(tokenizer, False).sha256
    assert before == load_chat_template(tokenizer, True).sha256
    (byte_tokenizer / "chat_template.jinja").write_text("other")
    assert load_chat_template(tokenizer, False).sha256 != before


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("ho", "<think></think>ho"),
        ("<think>\nhm</think>ho", "<think>\nhm</think>ho"),
        ("hm</think>ho", "<think>\nhm</think>ho"),
    ],
)
def test_the_default_gives_every_answer_the_thinking_part_it_lacks(
    byte_tokenizer: Path, answer: str, written: str
) -> None:
    template = load_chat_template(load_tokenizer(byte_tokenizer), False)
    found = template.render([*ASKED, Message("assistant", answer)])
    head = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert found == f"{head}{written}<|im_end|>\n"


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff", "not UTF-8"), (None, "without a default")], ids=["encoding", "names"]
)
def test_a_template_that_cannot_be_read_is_one_line(byte_tokenizer: Path, content: bytes | None, said: str) -> None:
    if content is None:
        write_config(byte_tokenizer, chat_template=[{"name": "tool_use", "template": "x"}])
    else:
        (byte_tokenizer / "chat_template.jinja").write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        load_chat_template(load_tokenizer(byte_tokenizer), False)
    assert "\n" not in str(error.value)


def test_a_processors_file_and_more_templates_are_found(byte_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    assert load_chat_template(tokenizer, False).source == "default ChatML"
    (byte_tokenizer / "chat_template.json").write_text(json.dumps({"chat_template": "of a processor"}))
    template = load_chat_template(tokenizer, False)
    assert (template.render(ASKED), template.source) == ("of a processor", "chat_template.json")
    write_config(byte_tokenizer, chat_template={"default": "by name", "tool_use": "with tools"})
    template = load_chat_template(tokenizer, False)
    assert (template.render(ASKED), template.render(ASKED, tools=[{}])) == ("by name", "with tools")
    more = byte_tokenizer / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("other tools")
    (byte_tokenizer / "chat_template.jinja").write_text("file")
    template = load_chat_template(tokenizer, False)
    assert (template.render(ASKED), template.render(ASKED, tools=[{}])) == ("file", "other tools")


def test_templates_without_a_default_are_named(byte_tokenizer: Path) -> None:
    more = byte_tokenizer / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("one")
    (more / "tool_use.jinja").write_text("two")
    with pytest.raises(UserError, match="has the chat templates rag, tool_use, without a default"):
        load_chat_template(load_tokenizer(byte_tokenizer), False)
    (more / "default.jinja").write_text("three")
    template = load_chat_template(load_tokenizer(byte_tokenizer), False)
    assert (template.text, template.tools_text, template.source) == ("three", "two", "additional_chat_templates")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"chat_template": {"default": 3}}'])
def test_a_broken_processors_file_is_one_line(byte_tokenizer: Path, content: str) -> None:
    (byte_tokenizer / "chat_template.json").write_text(content)
    with pytest.raises(UserError, match=r"chat_template\.json") as error:
        load_chat_template(load_tokenizer(byte_tokenizer), False)
    assert "\n" not in str(error.value)


def test_the_default_writes_tools_calls_and_reasoning(byte_tokenizer: Path) -> None:
    template = load_chat_template(load_tokenizer(byte_tokenizer), False)
    call = {"function": {"name": "add", "arguments": {"a": "ü"}}}
    found = template.render([*ASKED, Message("assistant", None, "hm", calls=(call, call))], tools=[{"name": "add"}])
    head, _, answer = found.partition("<|im_start|>assistant\n")
    assert '<tools>\n{"name": "add"}\n</tools>' in head.partition("<|im_end|>")[0]
    written = '<tool_call>\n{"name": "add", "arguments": {"a": "ü"}}\n</tool_call>'
    assert answer == f"<think>\nhm\n</think>\n\n{written}\n{written}<|im_end|>\n"


def test_reasoning_is_given_under_a_name_that_the_template_reads(byte_tokenizer: Path) -> None:
    message, tokenizer = Message("assistant", "four", "hm", "thinking"), load_tokenizer(byte_tokenizer)
    for text, given in [
        ("{{ messages[0].thinking }}{{ messages[0].reasoning }}", {"content": "four", "thinking": "hm"}),
        ("{{ messages[0]['reasoning'] }}{{ thinking }}", {"content": "four", "reasoning": "hm"}),
        ("{{ messages[0].content.split('</think>') }}", {"content": "<think>\nhm\n</think>\n\nfour"}),
        ("{{ messages[0].content }}", {"content": "four"}),
    ]:
        (byte_tokenizer / "chat_template.jinja").write_text(text)
        assert load_chat_template(tokenizer, False).message_fields(message) == {"role": "assistant"} | given


def test_a_date_is_kept_only_for_a_clock(byte_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    assert load_chat_template(tokenizer, False, "2020-01-02").date is None
    (byte_tokenizer / "chat_template.jinja").write_text("{{ strftime_now('%d.%m.%y') }}")
    assert load_chat_template(tokenizer, False, "2020-01-02").render(ASKED) == "02.01.20"
    assert load_chat_template(tokenizer, False).date is not None


@pytest.mark.parametrize("text", ["{{ " + "[" * 100_000, "{{ messages", "{{ messages.x.y }}", "{% include 'x' %}"])
def test_a_template_that_fails_refuses_the_conversation(byte_tokenizer: Path, text: str) -> None:
    (byte_tokenizer / "chat_template.jinja").write_text(text)
    with pytest.raises(ChatProblem, match="the chat template refuses it"):
        load_chat_template(load_tokenizer(byte_tokenizer), False).render(ASKED)
