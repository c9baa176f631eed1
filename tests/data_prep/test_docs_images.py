"""docs/data_images.md: every form that it shows is read, or refused, as it says, and its commands run."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train.data.image_store import ImageIndex
from nld_train.data.supervision import Supervision
from nld_train.data.token_file import TokenFile
from nld_train.data.tokenizer import load_tokenizer
from nld_train.errors import UserError
from tests.data_prep.image_files import NAMES, save_image

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "data_images.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```json\n(.+)\n```\n\n(Supervised|Refused): (.+)\n", TEXT)
COMMANDS = [line for block in re.findall(r"```sh\n(.+?)```", TEXT, re.DOTALL) for line in block.splitlines()]
Nld = Callable[..., int]


def test_no_example_is_overlooked() -> None:
    assert len(EXAMPLES) == TEXT.count("```json") >= 6 and len(COMMANDS) == 2


@pytest.mark.parametrize(("row", "how", "said"), EXAMPLES)
def test_an_example_is_read_as_the_page_says(
    tmp_path: Path, tokenizer: Path, nld: Nld, row: str, how: str, said: str
) -> None:
    save_image(tmp_path / "desk.png", 60, 60)
    (tmp_path / "in.jsonl").write_text(row + "\n", encoding="utf-8")
    words = ["data", "prepare-chat", tmp_path / "in.jsonl", "--tokenizer", tokenizer, "--output", tmp_path / "chat"]
    words += ["--workers", 1, "--image-tokens", NAMES]
    piece = said.strip("`")
    if how == "Refused":
        with pytest.raises(UserError, match=re.escape(piece)):
            nld(*words)
        return
    assert nld(*words) == 0
    supervised = TokenFile(tmp_path / "chat")[0][Supervision(tmp_path / "chat").of(0)]
    assert piece in load_tokenizer(tokenizer).decode(supervised)
    assert len(ImageIndex(tmp_path / "chat").of(0)) == 1


def test_the_commands_run(
    tmp_path: Path, tokenizer: Path, nld: Nld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tokenizer").symlink_to(tokenizer)
    save_image(tmp_path / "desk.png", 448, 308)
    Path("chats.jsonl").write_text(EXAMPLES[0][0] + "\n")
    for command in COMMANDS:
        assert nld(*shlex.split(command)[1:]) == 0
    assert "[image 448x308 -> 16x11 cells]" in capsys.readouterr().out
