"""One small trained tokenizer for all tests, and a command line to run them through."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.cli import add_data_commands
from data_prep.train_tokenizer import train_tokenizer

LINES = [f"def function_{i}(value):\n    return value * {i}  # the end of line {i}\n" for i in range(200)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(4):
        (folder / f"part{i}.py").write_text("".join(LINES[i * 50 : i * 50 + 50]))
    return folder


@pytest.fixture(scope="session")
def tokenizer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer([corpus], folder, vocab_size=400)
    return folder


@pytest.fixture(scope="session")
def nld() -> Callable[..., int]:
    """`nld(...)` as the command line runs it: exit status, or the UserError it would print."""

    def run(*words: object) -> int:
        parser = argparse.ArgumentParser("nld")
        add_data_commands(parser.add_subparsers(required=True))
        args = parser.parse_args([str(word) for word in words])
        return args.run(args)

    return run
