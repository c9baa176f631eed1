"""docs/data.md: every form that it shows is read, or refused, as it says, and its commands run."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train.data.supervision import Supervision
from nld_train.data.token_file import TokenFile
from nld_train.data.tokenizer import load_tokenizer
from nld_train.errors import UserError

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```json\n(.+)\n```\n\n(Supervised|Refused): (.+)\n", TEXT)
COMMANDS = [line for block in re.findall(r"```sh\n(.+?)```", TEXT, re.DOTALL) for line in block.splitlines()]
Nld = Callable[..., int]


def test_no_example_is_overlooked() -> None:
    assert len(EXAMPLES) == TEXT.count("```json") >= 15 and len(COMMANDS) >= 3


@pytest.mark.parametrize(("row", "how", "said"), EXAMPLES)
def test_an_example_is_read_as_the_page_says(
    tmp_path: Path, tokenizer: Path, nld: Nld, row: str, how: str, said: str
) -> None:
    (tmp_path / "in.jsonl").write_text(row + "\n", encoding="utf-8")
    words = ["data", "prepare-chat", tmp_path / "in.jsonl", "--tokenizer", tokenizer, "--output", tmp_path / "chat"]
    pieces = re.findall(r"`([^`]+)`", said)
    if how == "Refused":
        with pytest.raises(UserError, match=re.escape(pieces[0])):
            nld(*words, "--workers", 1)
        return
    assert nld(*words, "--workers", 1) == 0
    tokens, counts = TokenFile(tmp_path / "chat")[0], Supervision(tmp_path / "chat").of(0)
    supervised = load_tokenizer(tokenizer).decode(tokens[counts])
    assert re.fullmatch(r"\s*".join(map(re.escape, pieces)), re.sub(TAGS, "", supervised)), supervised


TAGS = r"^<think>\s+|\s*</?(tool_call|think)>\s*|<\|im_end\|>"


def test_the_commands_run_and_say_what_was_not_read(
    tmp_path: Path, tokenizer: Path, nld: Nld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tokenizer").symlink_to(tokenizer)
    rows = [json.loads(row) for row, _, _ in EXAMPLES]
    Path("chats.jsonl").write_text(json.dumps(next(row for row in rows if "id" in row)) + "\n")
    Path("preferences.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows if "chosen" in r or "label" in r))
    for command in COMMANDS:
        assert command.startswith("nld ") and nld(*command.split()[1:]) == 0
    said = capsys.readouterr().out
    assert "template: chat_template.jinja" in said and "fields that were not read: id (1), source (1)" in said
    assert "a row that is marked as bad: label false: 1" in said
