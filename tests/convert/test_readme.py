"""Every command that stands in the README of an export works as it stands there."""

import re
import shlex
import shutil

import pytest
import torch

from nld_train.cli import main
from nld_train.convert.weight_table import MINISTRAL_TEXT, NLD
from tests.convert.conftest import export, imported
from tests.vision_folder import save_ministral, stock_ministral, write_picture


@pytest.mark.parametrize("naming", [NLD, MINISTRAL_TEXT], ids=["tri-mode", "left to right"])
def test_its_commands_run_in_the_folder(random_run, tmp_path, monkeypatch, capsys, naming) -> None:
    folder = export(random_run, tmp_path / "hf", dtype=torch.float32, naming=naming)
    blocks = re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    commands = [line.split("#")[0] for block in blocks for line in block.splitlines()]
    assert len(commands) == (2 if naming is NLD else 1)
    monkeypatch.chdir(folder)
    for command in commands:
        words = shlex.split(command)
        monkeypatch.setattr("sys.argv", words)
        assert words[0] == "nld" and main() == 0, capsys.readouterr().err
    shutil.rmtree("imported")


@pytest.mark.usefixtures("own_modules")
def test_the_commands_and_snippets_of_a_model_with_vision_run_in_the_folder(
    prepared, tmp_path, monkeypatch, capsys
) -> None:
    save_ministral(stock_ministral(), prepared / "tokenizer", tmp_path / "ministral")
    folder = export(imported(tmp_path / "ministral", tmp_path / "out"), tmp_path / "hf")
    text = (folder / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    commands = [line.split("#")[0] for block in blocks for line in block.splitlines()]
    assert len(commands) == 3
    write_picture(folder / "photo.png", 40, 30)
    monkeypatch.chdir(folder)
    for command in commands:
        monkeypatch.setattr("sys.argv", shlex.split(command))
        assert main() == 0, capsys.readouterr().err
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 2
    capsys.readouterr()
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    for name in ("left to right", "block diffusion", "self-speculation", "image-text model"):
        assert name in printed


def test_no_program_that_was_not_run_has_a_command(random_run, tmp_path) -> None:
    text = (export(random_run, tmp_path / "hf") / "README.md").read_text()
    for block in re.findall(r"```.*?```", text, re.DOTALL):
        assert "sglang" not in block and "vllm" not in block
    assert "was not run" in text and "sglang_dllm.yaml" in text
    assert "SGLang: its table has block 32, this model has 8" in text
