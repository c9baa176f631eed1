import json
from pathlib import Path

import pytest

from data_prep.train_tokenizer import train_tokenizer
from nld_train.data.tokenizer import CONTROL_IDS, ChatTokenIds, chat_token_ids, control_token, load_tokenizer
from nld_train.errors import UserError

FILES = ("chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")


def test_ids_are_controls_then_bytes_then_merges(tokenizer: Path) -> None:
    loaded = load_tokenizer(tokenizer)
    assert [loaded.library.id_to_token(i) for i in range(CONTROL_IDS)] == [control_token(i) for i in range(CONTROL_IDS)]
    assert chat_token_ids(loaded) == ChatTokenIds(bos=1, eos=2, im_start=10, im_end=11, mask=100)
    assert all(len(loaded.library.id_to_token(i)) == 1 for i in range(CONTROL_IDS, CONTROL_IDS + 256))
    assert all(len(loaded.library.id_to_token(i)) > 1 for i in range(CONTROL_IDS + 256, 400))
    assert loaded.vocab_size == 400
    added = loaded.library.get_added_tokens_decoder()
    assert sorted(added) == list(range(CONTROL_IDS)) and all(token.special for token in added.values())


def test_any_text_comes_back_and_known_text_is_short(tokenizer: Path) -> None:
    loaded = load_tokenizer(tokenizer)
    for text in ("def function_7(value):\n    return value", "Grüße 世界 🌍\x00\r\n\t ", "  \n\n  x", ""):
        assert loaded.decode(loaded.encode(text)) == text
    assert len(loaded.encode("def function_")) < len("def function_") / 2


def test_training_twice_gives_the_same_bytes(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    train_tokenizer([corpus], tmp_path / "again", vocab_size=400)
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tokenizer / name).read_bytes()


def test_control_spellings_in_the_training_text_are_learnt_as_text(tmp_path: Path) -> None:
    spelling = "a </s> b <|im_start|>user <SPECIAL_100> <SPECIAL_100>"
    (tmp_path / "a.txt").write_text(f"{spelling}\n" * 50)
    train_tokenizer([tmp_path / "a.txt"], tmp_path / "made", vocab_size=370)
    loaded = load_tokenizer(tmp_path / "made")
    tokens = loaded.encode(spelling)
    assert tokens.min() >= CONTROL_IDS and loaded.decode(tokens) == spelling
    assert len(tokens) < len(spelling)


def test_jsonl_is_trained_on_its_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"unseen": "x" * 50, "text": "word " * 50}) + "\n")
    train_tokenizer([tmp_path / "a.jsonl"], tmp_path / "made", vocab_size=361)  # four merges: Ġ w o r d
    vocabulary = load_tokenizer(tmp_path / "made").library.get_vocab()
    assert "Ġword" in vocabulary and "xx" not in vocabulary


@pytest.mark.parametrize(
    ("vocab_size", "text", "said"),
    [
        (356, b"word " * 50, "357 or more"),
        (5000, b"word " * 50, "of 5000 tokens"),
        (400, b"\xff", r"a\.txt:1: not UTF-8"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_is_left(
    tmp_path: Path, vocab_size: int, text: bytes, said: str
) -> None:
    (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(UserError, match=said):
        train_tokenizer([tmp_path / "a.txt"], tmp_path / "made", vocab_size=vocab_size)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_transformers_loads_the_folder_and_renders_chatml(tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(tokenizer))
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id, len(theirs)) == (1, 2, 0, 400)
    text = "def function_1(value): x"
    assert theirs.encode(text) == load_tokenizer(tokenizer).encode(text).tolist()
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
    turns = "<|im_start|>user\nhi<|im_end|>\n"
    empty = "<|im_start|>system\n<|im_end|>\n"
    assert theirs.apply_chat_template([user], tokenize=False) == empty + turns
    prompt = theirs.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert prompt == empty + turns + "<|im_start|>assistant\n<think></think>"
    thinking = theirs.apply_chat_template([user], tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert thinking == empty + turns + "<|im_start|>assistant\n<think>\n"
    told = theirs.apply_chat_template([{"role": "system", "content": "be"}, user, answer], tokenize=False)
    assert told == "<|im_start|>system\nbe<|im_end|>\n" + turns + "<|im_start|>assistant\n<think></think>ho<|im_end|>\n"
    ids = theirs.encode(told)
    assert (ids.count(10), ids.count(11)) == (3, 3)


def test_words_of_the_chat_template_are_tokens_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join(map(str, range(500))) * 2)
    lengths = []
    for name, chat_words in (("plain", False), ("chat", True)):
        train_tokenizer([tmp_path / "a.txt"], tmp_path / name, vocab_size=400, chat_words=chat_words)
        lengths.append(len(load_tokenizer(tmp_path / name).encode("assistant")))
    assert lengths == [len("assistant"), 1]
