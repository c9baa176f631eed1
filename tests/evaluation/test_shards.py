"""Shards of an evaluation by the real commands: merged, they are what one process finds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nld_train.cli import main

PROMPTS = [
    ("def f(x):", "code"),
    ("import os", "code"),
    ("Once upon", "text"),
    ("The end", "text"),
    ("for i in", "code"),
]
Nld = Callable[..., str]


@pytest.fixture
def nld(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Nld:
    """Runs the command line; gives its output, or its one line of refusal."""

    def run(*words: object, status: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["nld", *map(str, words)])
        assert main() == status
        out, err = capsys.readouterr()
        return out if status == 0 else err

    return run


@pytest.fixture
def evaluate(nld: Nld, folder: Path, tmp_path: Path) -> Nld:
    """`nld eval KIND` of the prompts, with these words too."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text, "category": name}) + "\n" for text, name in PROMPTS))
    given = [folder, "--prompts", prompts, "--block", "2,4", "--max-new-tokens", 8]
    return lambda kind, *words, status=0: nld("eval", kind, *given, *words, status=status)


def without_times(content: Any) -> Any:
    """The same, but for what a clock said."""
    if isinstance(content, dict):
        kept = {name: value for name, value in content.items() if name not in ("seconds", "tokens_per_second")}
        return {name: without_times(value) for name, value in kept.items()}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def records(path: Path) -> list[Any]:
    identity, *found = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    return [identity, *sorted(found, key=lambda record: record["key"])]


@pytest.mark.parametrize(("kind", "count"), [("decode", 35), ("sol", 10)])
def test_merged_shards_are_what_one_process_finds(
    evaluate: Nld, nld: Nld, tmp_path: Path, kind: str, count: int
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    evaluate(kind, "--output", one)
    for shard in ("1/2", "2/2"):
        assert "joins all shards" in evaluate(kind, "--output", two, "--shard", shard)
    said = nld("eval", "merge", two)
    assert f"{two / kind}.jsonl: {count} records of 2 shards\n" in said and "report.html" in said
    assert records(two / f"{kind}.jsonl") == records(one / f"{kind}.jsonl")
    figures, expected = (without_times(json.loads((path / f"{kind}.json").read_text())) for path in (two, one))
    assert figures == expected and figures["identity"]["records"] == count
    assert "<h2>" in (two / "report.html").read_text()
    assert "exists already" in nld("eval", "merge", two, status=2)
    nld("eval", "merge", two, "--kind", kind, "--overwrite")


def test_shards_that_are_not_all_there_are_refused(evaluate: Nld, nld: Nld, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert "no folder" in nld("eval", "merge", output, status=2)
    evaluate("decode", "--output", output, "--shard", "1/2")
    said = nld("eval", "merge", output, status=2)
    assert "lacks shard [2] of 2 of decode" in said and "--shard 2/2" in said and said.count("\n") == 1
    assert "no shards of sol" in nld("eval", "merge", output, "--kind", "sol", status=2)
    # A shard that was killed lacks its last records.
    evaluate("decode", "--output", output, "--shard", "2/2")
    second = output / "decode.2-of-2.jsonl"
    lines = second.read_text().splitlines(keepends=True)
    second.write_text("".join(lines[:-1]))
    assert "decode.2-of-2.jsonl has 13 of 14 records" in nld("eval", "merge", output, status=2)
    # One of another evaluation.
    second.write_text("".join([lines[0].replace('"chat": false', '"chat": true'), *lines[1:]]))
    assert "is of another evaluation" in nld("eval", "merge", output, status=2)
    # One of another number of shards.
    second.write_text("".join(lines))
    evaluate("decode", "--output", output, "--shard", "3/3")
    assert "decode.*-of-2.jsonl and decode.*-of-3.jsonl" in nld("eval", "merge", output, status=2)
    assert not (output / "decode.jsonl").exists()
    (output / "decode.3-of-3.jsonl").rename(output / "decode.3-of-2.jsonl")
    assert "decode.3-of-2.jsonl" in nld("eval", "merge", output, status=2)


def test_a_folder_without_shards_is_refused(nld: Nld, tmp_path: Path) -> None:
    (tmp_path / "decode.jsonl").touch()
    assert f"no shards in {tmp_path}" in nld("eval", "merge", tmp_path, status=2)


def test_an_array_of_an_evaluation_is_shown(nld: Nld, folder: Path, tmp_path: Path) -> None:
    site = tmp_path / "site.env"
    names = {"NLD_ACCOUNT": "none", "NLD_PARTITION": "gpu", "NLD_TIME": "1:00:00", "NLD_GPUS_PER_NODE": "8"}
    (tmp_path / "nld").touch()
    names |= {"NLD_FOLDER": str(tmp_path), "NLD_COMMAND": "nld"}
    site.write_text("".join(f"{name}={value}\n" for name, value in names.items()))
    given = ["launch", "eval", "decode", folder, "--prompts", "p.jsonl", "--shards", 2, "--site", site, "--dry-run"]
    script = nld(*given, "--block", "8,16")
    assert f"set -- {folder} --prompts p.jsonl --block 8,16\n" in script and "--array=1-2" in script
    assert f"set -- {folder}-eval --kind decode\n" in script and 'eval merge "$@"' in script
    assert "leave --shard out" in nld(*given, "--shard", "1/2", status=2)
