"""Every example of docs/data_text.md: its files are written, its Python is run, its commands give what it says."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data_text.md"
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_page_are_true(
    tmp_path: Path,
    tokenizer: Path,
    nld: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tokenizer, "tokenizer")
    said = ""
    ran = 0
    for kind, name, body in BLOCK.findall(PAGE.read_text()):
        if kind == "file":
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(body)
        elif kind == "python":
            exec(compile(body, str(PAGE), "exec"), {})
        else:
            assert kind == "sh", f"a block of {kind}"
            for line in body.splitlines():
                if line.startswith("# "):
                    missing = [part for part in line[2:].split("; ") if part not in said]
                    assert not missing, f"{missing} not in {said}"
                    continue
                command, *words = line.split()
                assert command == "nld" and nld(*words, "--workers", 1) == 0, line
                said = capsys.readouterr().out
                ran += 1
    assert ran == 11
