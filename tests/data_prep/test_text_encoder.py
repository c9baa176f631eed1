import json
import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_prep.prepare_text import TextOptions, prepare_text
from data_prep.text_encoder import (
    AUTO,
    ENGINES,
    PLAIN,
    WORTH_BYTES,
    EngineEncoder,
    PlainEncoder,
    adversarial_texts,
    choose_engine,
    first_difference,
    load_encoder,
    without_control_tokens,
)
from nld_train.data import tokenizer as tokenizer_module
from nld_train.data.token_file import TokenFile
from nld_train.data.tokenizer import CONTROL_IDS, TextTokenizer, load_tokenizer
from nld_train.errors import UserError

INSTALLED = [name for name in ENGINES if find_spec(name) is not None]
needs_engine = pytest.mark.skipif(
    not INSTALLED, reason=f"NO FAST ENGINE TESTED: none of {', '.join(ENGINES)} is installed (the extra `fast`)"
)


class LibraryEngine:
    """The tokenizers library behind the interface of an engine."""

    def __init__(self, content: str) -> None:
        self.library = Tokenizer.from_str(content)

    def encode_batch_flat(self, inputs: list[str]) -> tuple[bytes, bytes]:
        rows = [self.library.encode(text, add_special_tokens=False).ids for text in inputs]
        places = np.cumsum([0, *map(len, rows)], dtype=np.uint64)
        return np.array(sum(rows, []), dtype=np.uint32).tobytes(), places.tobytes()


@pytest.fixture(scope="module")
def loaded(tokenizer: Path) -> TextTokenizer:
    return load_tokenizer(tokenizer)


def test_control_tokens_are_the_trap_that_the_check_finds(loaded: TextTokenizer) -> None:
    """An engine that knows the control tokens writes control ids for a text that spells them."""
    whole = (loaded.folder / "tokenizer.json").read_text()
    texts = list(adversarial_texts(loaded))
    wrong = first_difference(loaded, LibraryEngine(whole), texts)
    assert wrong is not None and any(name in wrong for name in loaded.control_tokens().values())
    assert first_difference(loaded, LibraryEngine(without_control_tokens(loaded)), texts) is None


def test_the_check_finds_a_merge_that_is_missing(loaded: TextTokenizer) -> None:
    content = json.loads(without_control_tokens(loaded))
    content["model"]["merges"].pop(len(content["model"]["merges"]) // 2)
    engine = LibraryEngine(json.dumps(content))
    assert first_difference(loaded, engine, list(adversarial_texts(loaded))) is not None


def test_the_check_is_the_same_each_time(loaded: TextTokenizer) -> None:
    assert list(adversarial_texts(loaded)) == list(adversarial_texts(loaded))


def test_samples_are_compared_all_along(loaded: TextTokenizer) -> None:
    right = EngineEncoder(loaded, "right", LibraryEngine(without_control_tokens(loaded)))
    wrong = EngineEncoder(loaded, "wrong", LibraryEngine((loaded.folder / "tokenizer.json").read_text()))
    right.encode_texts(["plain text", "a </s> b"])
    wrong.encode_texts(["plain text"])
    with pytest.raises(UserError, match=r"wrong encodes 'a </s> b' otherwise.*--engine plain"):
        for _ in range(20):
            wrong.encode_texts(["plain text", "a </s> b"])


@pytest.mark.parametrize("limit", [7, 1 << 20])
def test_long_texts_are_cut_where_the_library_would_cut_them(
    loaded: TextTokenizer, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", limit)
    monkeypatch.setattr("data_prep.text_encoder.PIECE_CHARACTERS", limit)
    texts = ["a\nlonger text\nof lines", "short", "x" * 50, "return value"]
    engine = EngineEncoder(loaded, "right", LibraryEngine(without_control_tokens(loaded)))
    ids, counts = engine.encode_texts(texts)
    plain_ids, plain_counts = PlainEncoder(loaded).encode_texts(texts)
    assert ids.tolist() == plain_ids.tolist() and counts.tolist() == plain_counts.tolist()
    assert counts.tolist() == [loaded.encode(text).size for text in texts]


def test_a_small_input_loads_no_engine(loaded: TextTokenizer) -> None:
    assert choose_engine(loaded, AUTO, WORTH_BYTES - 1) == PLAIN == choose_engine(loaded, PLAIN, 10 * WORTH_BYTES)


@pytest.mark.skipif(bool(INSTALLED), reason="an engine is installed")
def test_without_an_engine_one_line_says_so(loaded: TextTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_engine(loaded, AUTO, WORTH_BYTES) == PLAIN
    (message,) = caplog.messages
    assert message.startswith("encoding with the tokenizers library: none of snaptokens") and "\n" not in message
    with pytest.raises(UserError, match="--engine snaptokens"):
        choose_engine(loaded, "snaptokens", 1)


def test_an_engine_of_another_machine_is_refused(loaded: TextTokenizer) -> None:
    with pytest.raises(UserError, match="cannot encode with snaptokens 0.0.0"):
        load_encoder(loaded, "snaptokens 0.0.0")


@needs_engine
@pytest.mark.parametrize("name", INSTALLED)
def test_an_installed_engine_makes_the_same_files(tmp_path: Path, corpus: Path, tokenizer: Path, name: str) -> None:
    text = "stop </s> <s> <|im_start|>user<|im_end|> <SPECIAL_100><unk>"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "x\n" * 700_000}) + "\n")
    made = {}
    for engine in (PLAIN, name):
        prefix = tmp_path / engine
        prepare_text([tmp_path / "a.jsonl", corpus], prefix, tokenizer, TextOptions(workers=1, engine=engine))
        made[engine] = [Path(f"{prefix}{suffix}").read_bytes() for suffix in (".bin", ".idx", ".manifest.json")]
    assert made[PLAIN] == made[name]
    assert TokenFile(tmp_path / name)[0][:-1].min() >= CONTROL_IDS


@needs_engine
def test_an_installed_engine_is_chosen_and_said(loaded: TextTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        chosen = choose_engine(loaded, AUTO, WORTH_BYTES)
    assert chosen.split()[0] == INSTALLED[0] and f"encoding with {chosen}: it gives the ids" in caplog.text
    assert isinstance(load_encoder(loaded, chosen), EngineEncoder)


@needs_engine
def test_a_tokenizer_that_an_engine_cannot_take_is_one_line(
    tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tokenizers import models, pre_tokenizers, trainers

    library = Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train([str(path) for path in corpus.iterdir()], trainers.UnigramTrainer(initial_alphabet=alphabet))
    library.save(str(tmp_path / "tokenizer.json"))
    other = load_tokenizer(tmp_path)
    with caplog.at_level(logging.INFO):
        assert choose_engine(other, AUTO, WORTH_BYTES) == PLAIN
    (message,) = caplog.messages
    assert message.startswith("encoding with the tokenizers library: ") and "\n" not in message
