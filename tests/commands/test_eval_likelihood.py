"""`nld eval likelihood`: the same figures from a run and its export, killed or not, whole or in shards."""

import json
import re
import sys
from pathlib import Path

import pytest

from nld_train import cli
from nld_train.evaluation.record_file import merge_record_files, read_records
from nld_train.evaluation.results import write_figures

LIMITS = ["--rows", 6, "--length", 24, "--draws", 4]


@pytest.fixture
def nld(monkeypatch):
    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["nld", "eval", "likelihood", *map(str, words)])
        return cli.main()

    return run


def figures_of(output: Path) -> dict:
    return json.loads((output / "likelihood.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_and_its_export_have_the_same_figures(random_run, exported, prepared, tmp_path, nld, dtype) -> None:
    found = []
    for name, folder in (("run", random_run), ("hf", exported)):
        words = [folder, "--data", prepared / "data" / "a", *LIMITS, "--dtype", dtype, "--output", tmp_path / name]
        assert nld(*words) == 0
        found.append(figures_of(tmp_path / name))
        assert read_records(tmp_path / name / "likelihood.jsonl")[1]
    for figures in found:
        for name in ("model", "step", "weights"):
            del figures["identity"][name]
    assert found[0] == found[1] and found[0]["tokens"] > 100


def test_the_table_says_what_was_measured_and_what_was_left_out(folder, prepared, tmp_path, nld, capsys) -> None:
    assert nld(folder, "--data", prepared / "data" / "a", *LIMITS, "--output", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert re.search(r"6 of [\d,]+ windows of up to 24 tokens; [\d,]+ between them are left out \(--rows 6\)", said)
    figures = figures_of(tmp_path / "out")
    assert f"AR{figures['ar']['nats_per_token']:36.4f}{figures['ar']['bits_per_byte']:16.4f}" in said
    assert f"{figures['diffusion']['noise_standard_error']['bits_per_byte']:.4f}" in said.splitlines()[-2]
    assert "Likelihood:" in (tmp_path / "out" / "report.html").read_text()
    assert "4 stratified draws of noise a window" in said


def test_killed_and_gone_on_it_has_the_same_figures(folder, prepared, tmp_path, nld, capsys) -> None:
    words = [folder, "--data", prepared / "data" / "a", *LIMITS, "--output", tmp_path / "out"]
    assert nld(*words) == 0
    records = tmp_path / "out" / "likelihood.jsonl"
    whole, figures = records.read_text(), figures_of(tmp_path / "out")
    lines = whole.splitlines(keepends=True)
    records.write_text("".join(lines[:4]) + lines[4][:20])  # killed within its fourth record
    (tmp_path / "out" / "likelihood.json").unlink()
    assert nld(*words) == 0
    assert records.read_text() == whole and figures_of(tmp_path / "out") == figures
    assert nld(*words, "--seed", 5) == 2
    assert "holds another evaluation: seed=1234, here 5" in capsys.readouterr().err


def test_shards_together_have_the_figures_of_one_process(folder, prepared, tmp_path, nld) -> None:
    words = [folder, "--data", prepared / "data" / "a", *LIMITS]
    assert nld(*words, "--output", tmp_path / "one") == 0
    for shard in (1, 2):
        assert nld(*words, "--output", tmp_path / "two", "--shard", f"{shard}/2") == 0
    parts = sorted((tmp_path / "two").glob("likelihood.*-of-2.jsonl"))
    merge_record_files(parts, tmp_path / "two" / "likelihood.jsonl", False, lambda name: True)
    assert write_figures(tmp_path / "two", "likelihood") == figures_of(tmp_path / "one")


BAD = {
    "no data": (["--data", "nowhere"], "no nowhere.idx and no file nowhere"),
    "rows": (["--rows", 0], "--rows 0"),
    "length": (["--length", 128], "--length 128; allowed: 1 to 127"),
    "draws": (["--draws", 3], "--draws 3 with --noise stratified"),
    "adapter": (["--adapter", "x"], "--adapter for a likelihood"),
    "short": (["--data", "short.txt"], "no token to predict in short.txt"),
}


@pytest.mark.parametrize(("words", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(folder, prepared, tmp_path, nld, capsys, monkeypatch, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text(" \n")
    assert nld(folder, "--data", prepared / "data" / "a", "--output", tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err
