import json
from pathlib import Path

import pytest

from nld_train.data.chat_template import DEFAULT_TEMPLATE, Message, load_chat_template
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
