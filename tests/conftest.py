"""What tests of several rooms share."""

from pathlib import Path

import pytest

from data_prep.prepare import PrepareOptions, prepare
from data_prep.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of 400 tokens and two prepared token files, data/a and data/b, of real text."""
    folder = tmp_path_factory.mktemp("prepared")
    repository = Path(__file__).resolve().parents[1]
    text_a, text_b = repository / "nld_train", repository / "tests"
    train_tokenizer([text_a], folder / "tokenizer", vocab_size=400)
    for name, text in (("a", text_a), ("b", text_b)):
        prepare([text], folder / "data" / name, folder / "tokenizer", PrepareOptions(workers=1))
    return folder
