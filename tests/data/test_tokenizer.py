import json
from pathlib import Path

import numpy as np
import pytest

from nld_train.data import tokenizer as module
from nld_train.data.tokenizer import (
    CONTROL_IDS,
    ChatTokenIds,
    begin_of_text_id,
    chat_token_ids,
    check_mask_id,
    control_token,
    end_of_document_id,
    load_tokenizer,
    named_tokens,
    split_text,
    tokenizer_fingerprint,
)
from nld_train.errors import UserError

TEXTS = [
    "",
    "a",
    "tabs\tand\r\nlines\n\n",
    "Grüße, 世界 🌍",
    "\x00\x7f",
    " leading",
    "</s><|im_start|>user<SPECIAL_100>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(byte_tokenizer: Path, text: str) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("token_id", [0, 1, 2, 3, 10, 11, 99, 100])
def test_the_spelling_of_a_control_token_is_text(byte_tokenizer: Path, token_id: int) -> None:
    tokens = load_tokenizer(byte_tokenizer).encode(f"see {control_token(token_id)}: {control_token(token_id)}")
    assert tokens.min() >= CONTROL_IDS


def test_a_tokenizer_that_reads_controls_out_of_text_is_refused(byte_tokenizer: Path) -> None:
    path = byte_tokenizer / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["ignore_merges"] = True  # whole words are looked up in the vocabulary first
    content["pre_tokenizer"]["use_regex"] = False  # and the whole text is one word
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="control id"):
        load_tokenizer(byte_tokenizer)


def test_no_token_is_added_to_the_text(byte_tokenizer: Path) -> None:
    path = byte_tokenizer / "tokenizer.json"
    content = json.loads(path.read_text())
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special
    }  # fmt: skip
    content["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    path.write_text(json.dumps(content))
    assert len(load_tokenizer(byte_tokenizer).encode("abcde")) == 5


def test_tokens_have_the_type_of_token_files(byte_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    assert tokenizer.vocab_size == CONTROL_IDS + 256
    assert tokenizer.encode("x").dtype == np.uint16


def test_special_ids_are_those_of_the_family(byte_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    assert chat_token_ids(tokenizer) == ChatTokenIds(bos=1, eos=2, im_start=10, im_end=11, mask=100)
    assert end_of_document_id(tokenizer) == 2


def test_the_fingerprint_follows_the_file(byte_tokenizer: Path) -> None:
    before = tokenizer_fingerprint(byte_tokenizer)
    assert load_tokenizer(byte_tokenizer).fingerprint == before
    path = byte_tokenizer / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert tokenizer_fingerprint(byte_tokenizer) != before


@pytest.mark.parametrize("text", ["ab\ncd\nef", "abcdefgh", "\n\n\n\n\n", "", "ab\n"])
@pytest.mark.parametrize("limit", [1, 3, 4, 100])
def test_pieces_of_a_long_text_join_to_it(text: str, limit: int) -> None:
    pieces = split_text(text, limit)
    assert "".join(pieces) == text and max(map(len, pieces)) <= limit


def test_long_texts_are_cut_at_line_ends() -> None:
    assert split_text("ab\ncd\nef", 4) == ["ab\n", "cd\n", "ef"]


def test_a_long_text_is_encoded_like_its_pieces(byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    text = "some line\n" * 50
    whole = tokenizer.encode(text)
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 25)
    assert tokenizer.encode(text).tolist() == whole.tolist()


@pytest.mark.parametrize(
    ("content", "said"), [(None, "no tokenizer.json"), ("", "not JSON"), ("{", "not JSON"), ("{}", "no model")]
)
def test_a_broken_folder_is_named_in_one_line(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=said) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [(None, "no tokenizer_config"), ("[", "not JSON"), ("[]", "holds no object"), ("{}", "names no"),
     ('{"eos_token": "<end>"}', "not in")],
)  # fmt: skip
def test_a_config_without_a_usable_eos_is_refused(byte_tokenizer: Path, config: str | None, said: str) -> None:
    path = byte_tokenizer / "tokenizer_config.json"
    path.unlink() if config is None else path.write_text(config)
    with pytest.raises(UserError, match=said):
        end_of_document_id(load_tokenizer(byte_tokenizer))


def rewrite(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))


TOKEN = {"content": "<s>", "lstrip": False, "normalized": False, "special": True}


@pytest.mark.parametrize("bos", ["<s>", TOKEN, {"__type": "AddedToken", **TOKEN}])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_are_those_that_transformers_finds(byte_tokenizer: Path, name: str, bos: object) -> None:
    from transformers import AutoTokenizer

    (byte_tokenizer / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    rewrite(byte_tokenizer, name, bos_token=bos, eos_token="</s>")
    tokenizer = load_tokenizer(byte_tokenizer)
    assert (begin_of_text_id(tokenizer), end_of_document_id(tokenizer)) == (1, 2)
    if name == "tokenizer_config.json" and bos is TOKEN:
        return  # transformers itself does not read this form here
    theirs = AutoTokenizer.from_pretrained(str(byte_tokenizer)).special_tokens_map
    assert named_tokens(tokenizer) == {key: str(token) for key, token in theirs.items()}


def test_no_beginning_of_text_is_no_error(byte_tokenizer: Path) -> None:
    rewrite(byte_tokenizer, "tokenizer_config.json", bos_token=None)
    assert begin_of_text_id(load_tokenizer(byte_tokenizer)) is None


def test_a_file_of_a_newer_library_is_one_line(byte_tokenizer: Path) -> None:
    rewrite(byte_tokenizer, "tokenizer.json", pre_tokenizer={"type": "OfTheFuture", "depth": 3})
    with pytest.raises(UserError, match=r"cannot be read by tokenizers [0-9.]+: .*newer ones write") as error:
        load_tokenizer(byte_tokenizer)
    assert "\n" not in str(error.value)


def test_a_mask_that_is_text_is_refused_and_a_free_one_proposed(byte_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    check_mask_id(tokenizer, 100, "--mask-id")
    check_mask_id(tokenizer, 357, "--mask-id")  # behind the last id: no text
    with pytest.raises(UserError, match=r"--mask-id=165 is the text 'a' .* set --mask-id=100$"):
        check_mask_id(tokenizer, tokenizer.library.token_to_id("a"), "--mask-id")


def test_without_a_reserved_token_an_id_behind_the_text_is_proposed(byte_tokenizer: Path) -> None:
    """As in vocabularies of byte-level BPE with one control token, whose id 100 is text."""
    path = byte_tokenizer / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] in (1, 2)]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"m=100 is the text .* set m=357 and model.vocab_size=384 or more$"):
        check_mask_id(load_tokenizer(byte_tokenizer), 100, "m")
    rewrite(byte_tokenizer, "tokenizer_config.json", mask_token="</s>")
    with pytest.raises(UserError, match=r"set m=2$"):
        check_mask_id(load_tokenizer(byte_tokenizer), 100, "m")
