from pathlib import Path

import pytest

from data_prep.stdlib import copy_stdlib, stdlib_sources
from nld_train.errors import UserError


def test_the_sources_are_real_readable_and_not_tests() -> None:
    files = stdlib_sources()
    assert files == sorted(files) and {"argparse.py", "dataclasses.py"} <= {file.name for file in files}
    parts = {part for file in files for part in file.parts}
    assert not parts & {"site-packages", "__pycache__", "idle_test"}
    assert 5e6 < sum(len(file.read_text(encoding="utf-8").encode()) for file in files) < 30e6


def test_the_copy_is_whole_and_is_not_replaced_unasked(tmp_path: Path) -> None:
    count = copy_stdlib(tmp_path / "text")
    assert sum(1 for path in (tmp_path / "text").rglob("*.py")) == count == len(stdlib_sources())
    assert (tmp_path / "text" / "json" / "decoder.py").is_file()
    with pytest.raises(UserError, match="exists"):
        copy_stdlib(tmp_path / "text")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
