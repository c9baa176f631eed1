"""What lies in an export for SGLang, and what is said of its own table."""

import logging
import re

import pytest

from nld_train.convert.config_json import SpecialTokenIds
from nld_train.convert.sglang import SGLANG_FILE, write_sglang_config

LINE = re.compile(r"^(\w+): (\S+)", re.MULTILINE)


@pytest.mark.parametrize(
    ("mask", "block", "warned"),
    [(100, 32, []), (100, 8, ["its table has block 32, this model has 8"]), (7, 32, ["its table has mask id 100"])],
)
def test_the_file_says_what_sglang_would_assume_otherwise(tmp_path, caplog, mask, block, warned) -> None:
    with caplog.at_level(logging.WARNING):
        write_sglang_config(
            SpecialTokenIds(bos_token_id=1, eos_token_id=2, mask_token_id=mask, block_size=block), tmp_path
        )
    found = dict(LINE.findall((tmp_path / SGLANG_FILE).read_text()))
    assert found == {"causal_context": "true", "block_size": str(block), "threshold": "0.9"}
    assert len(caplog.records) == len(warned)
    assert all(text in record.getMessage() for text, record in zip(warned, caplog.records, strict=True))
