"""The tokenizer of an export ends where config.json says, whichever reader asks it."""

import json

import pytest

from nld_train.convert.tokenizer_files import export_tokenizer
from nld_train.errors import UserError

FILES = ("tokenizer_config.json", "special_tokens_map.json")


@pytest.mark.parametrize("spelled", ["</s>", {"content": "</s>", "lstrip": False}])
def test_the_end_of_a_turn_becomes_the_end_of_sequence(prepared, copy_of, tmp_path, spelled) -> None:
    source, target = copy_of(prepared / "tokenizer"), tmp_path / "out"
    for name in FILES:
        content = json.loads((source / name).read_text()) | {"eos_token": spelled}
        (source / name).write_text(json.dumps(content))
    target.mkdir()
    export_tokenizer(source, target, 11)
    for name in FILES:
        before, after = (json.loads((folder / name).read_text()) for folder in (source, target))
        assert after == before | {"eos_token": "<|im_end|>"}
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(target).eos_token_id == 11


def test_files_that_name_it_already_stay_byte_for_byte(prepared, tmp_path) -> None:
    export_tokenizer(prepared / "tokenizer", tmp_path, 2)
    for name in (*FILES, "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (prepared / "tokenizer" / name).read_bytes()


def test_an_id_that_the_vocabulary_lacks_is_one_line(prepared, tmp_path) -> None:
    with pytest.raises(UserError, match="eos_token_id=400; allowed: the ids of"):
        export_tokenizer(prepared / "tokenizer", tmp_path, 400)
