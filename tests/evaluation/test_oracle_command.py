"""`nld eval sol` from the command line."""

import json
from pathlib import Path

import pytest

from nld_train import cli

PROMPTS = [
    {"prompt": "def main", "category": "code"},
    {"prompt": "import os, sys", "category": "import"},
    {"prompt": "class A:", "category": "code"},
]


@pytest.fixture
def command(folder: Path, tmp_path: Path, capsys, monkeypatch):
    """Runs the command with more words. Returns: status, and what was printed."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))

    def run(*words: str) -> tuple[int, str]:
        given = ["eval", "sol", str(folder), "--prompts", str(prompts), "--max-new-tokens", "8", *words]
        monkeypatch.setattr("sys.argv", ["nld", *given])
        status = cli.main()
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def test_one_command_gives_the_table_and_the_figures(command, tmp_path: Path) -> None:
    status, printed = command("--block", "4,8", "--output", str(tmp_path / "out"))
    assert status == 0 and "all categories" in printed and (tmp_path / "out" / "report.html").is_file()
    figures = json.loads((tmp_path / "out" / "sol.json").read_text())
    assert [found["block"] for found in figures["blocks"]] == [4, 8] and figures["identity"]["model"].endswith(
        tmp_path.name
    )
    assert figures["blocks"][0]["categories"].keys() == {"code", "import"}
    assert figures["blocks"][0]["overall"]["samplers"].keys() == {"0.5", "0.7", "0.9"}
    first = (tmp_path / "out" / "sol.json").read_bytes()
    assert command("--block", "4,8", "--output", str(tmp_path / "out"))[0] == 0
    assert (tmp_path / "out" / "sol.json").read_bytes() == first
    status, printed = command("--block", "4,8", "--output", str(tmp_path / "out"), "--depth", "0")
    assert status == 2 and "holds another evaluation: depth=2, here 0" in printed
    status, printed = command("--block", "4,8", "--output", str(tmp_path / "out"), "--depth", "0", "--overwrite")
    assert status == 0 and "compaction" not in json.loads((tmp_path / "out" / "sol.json").read_text())["blocks"][0]


def test_a_shard_leaves_its_records_and_no_figures(command, tmp_path: Path) -> None:
    status, printed = command("--block", "8", "--output", str(tmp_path / "out"), "--shard", "2/2", "--category", "code")
    assert status == 0 and "sol.2-of-2.jsonl" in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sol.2-of-2.jsonl"]
    identity, *records = (tmp_path / "out" / "sol.2-of-2.jsonl").read_text().splitlines()
    assert json.loads(identity)["records"] == len(records) == 1, "so that a merge sees whether a shard is finished"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--block", "3,x"], "--block 3,x; allowed: numbers from 1 to 1024"),
        (["--block", "0"], "--block 0; allowed: numbers"),
        (["--block", "4,3"], "--max-new-tokens 8 with --block 3; allowed: multiples of 3; do: use 9"),
        (["--block", "4", "--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--block", "4", "--threshold", "0.5,1.5"], "--threshold 0.5,1.5; allowed: numbers from 0.0 to 1.0"),
        (["--block", "4", "--threshold", "nan"], "--threshold nan; allowed: numbers from 0.0 to 1.0"),
        (["--block", "4", "--threshold", ""], "--threshold ; allowed: numbers from 0.0 to 1.0"),
        (["--block", "4", "--depth", "-1"], "--depth -1"),
        (["--block", "4", "--budget", "0"], "--budget 0"),
        (["--block", "4", "--thinking"], "--thinking without --chat"),
        (["--block", "4", "--category", "poetry"], "--category ['poetry']; allowed: code, import"),
        (["--block", "4", "--shard", "4/4"], "--shard 4/4 holds no prompt"),
        (["--block", "4", "--prompts", "none.jsonl"], "no file none.jsonl"),
        (["--block", "8", "--max-new-tokens", "120"], "positions"),
        (["--block", "4", "--step", "3"], "runs alone have steps"),
    ],
)
def test_bad_input_is_one_line(command, words, said, tmp_path: Path) -> None:
    status, printed = command("--output", str(tmp_path / "out"), *words)
    assert status == 2 and said in printed and printed.count("\n") == 1, printed
