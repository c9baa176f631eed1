import json
from pathlib import Path

import pytest

from data_prep.inspect_file import inspect_token_file
from data_prep.prepare_text import TextOptions, prepare_text
from nld_train.data.token_file import bin_path
from nld_train.data.tokenizer import printable_text
from nld_train.errors import UserError


@pytest.fixture
def prefix(tmp_path: Path, tokenizer: Path) -> Path:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": f"document number {i}\x1b[2J"}) + "\n" for i in range(30)))
    prepare_text([source], tmp_path / "data", tokenizer, TextOptions(workers=1))
    return tmp_path / "data"


def test_the_report_names_counts_lengths_and_samples(prefix: Path, tokenizer: Path) -> None:
    report = list(inspect_token_file(prefix, str(tokenizer), samples=4, seed=0, verify=True))
    assert "documents: 30" in report and "sources: a.jsonl" in report and "hashes: as in the manifest" in report
    assert any(line.startswith("document length, median: ") for line in report)
    texts = [line for line in report if line.startswith("document number")]
    assert len(texts) == 4 and all(text.endswith("\\x1b[2J</s>") for text in texts)


def test_samples_depend_on_the_seed_alone(prefix: Path, tokenizer: Path) -> None:
    reports = [list(inspect_token_file(prefix, str(tokenizer), 4, seed, verify=False)) for seed in (0, 0, 1)]
    assert reports[0] == reports[1] != reports[2]


def test_more_samples_than_documents_shows_them_all(prefix: Path, tokenizer: Path) -> None:
    report = list(inspect_token_file(prefix, str(tokenizer), 99, 0, verify=False))
    assert sum(line.startswith("--- document") for line in report) == 30


def test_without_a_tokenizer_there_are_no_samples(prefix: Path) -> None:
    assert list(inspect_token_file(prefix, None, 3, 0, verify=False))[-1].startswith("samples: none")


def test_a_changed_file_fails_verification(prefix: Path) -> None:
    data = bytearray(bin_path(prefix).read_bytes())
    data[0] ^= 1
    bin_path(prefix).write_bytes(data)
    list(inspect_token_file(prefix, None, 3, 0, verify=False))
    with pytest.raises(UserError, match="SHA-256"):
        list(inspect_token_file(prefix, None, 3, 0, verify=True))


def test_control_characters_are_written_out() -> None:
    assert printable_text("a\tb\nü\x1b\r") == "a\tb\nü\\x1b\\r"
