"""A tokenizer of control tokens and bytes, built by hand: nothing to train."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nld_train.data.tokenizer import CONTROL_IDS, control_token


def write_byte_tokenizer(folder: Path) -> Path:
    controls = [control_token(i) for i in range(CONTROL_IDS)]
    names = controls + sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in controls])
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def byte_tokenizer(tmp_path: Path) -> Path:
    return write_byte_tokenizer(tmp_path / "tokenizer")


WORDS = ["system", "user", "assistant", "tool", "hello", "hi", "four", "and", "so", "bye", "4", "hm", "why"]


def write_word_tokenizer(folder: Path) -> Path:
    """Control tokens, bytes, the words of WORDS with and without a space before them, and the two tags of thinking,
    which are added tokens but no control tokens, as in the published family."""
    controls = [control_token(i) for i in range(CONTROL_IDS)]
    names = [*controls, *sorted(pre_tokenizers.ByteLevel.alphabet()), *WORDS, *(f"Ġ{word}" for word in WORDS)]
    names = list(dict.fromkeys(names))  # "4" is a byte too
    library = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in controls])
    library.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")])
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def word_tokenizer(tmp_path: Path) -> Path:
    return write_word_tokenizer(tmp_path / "words")
