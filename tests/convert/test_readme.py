"""Every command that stands in the README of an export works as it stands there."""

import re
import shlex
import shutil

import pytest
import torch

from nld_train.cli import main
from nld_train.convert.weight_table import MINISTRAL_TEXT, NLD
from tests.convert.conftest import export


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


def test_no_program_that_was_not_run_has_a_command(random_run, tmp_path) -> None:
    text = (export(random_run, tmp_path / "hf") / "README.md").read_text()
    for block in re.findall(r"```.*?```", text, re.DOTALL):
        assert "sglang" not in block and "vllm" not in block
    assert "was not run" in text and "sglang_dllm.yaml" in text
    assert "SGLang: its table has block 32, this model has 8" in text
