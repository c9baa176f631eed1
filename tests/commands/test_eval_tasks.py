"""`nld eval tasks`: both tiny tasks in all modes, killed and gone on, and one line for bad input."""

import json
import sys
from pathlib import Path

import pytest

from nld_train import cli
from nld_train.decode.modes import MODES
from nld_train.evaluation.record_file import read_records
from nld_train.evaluation.tasks.local_documents import arithmetic_documents, cloze_documents

TASKS = ["--tasks", "nld_arithmetic,nld_cloze", "--mode", "all", "--block", 4, "--limit", 6]


@pytest.fixture
def nld(monkeypatch):
    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["nld", "eval", "tasks", *map(str, words)])
        return cli.main()

    return run


@pytest.fixture
def wide(folder: Path) -> Path:
    """The model's folder with a context for twelve lines of code and more."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return folder


def answers_of(output: Path) -> dict[str, dict]:
    return {record["key"]: record for record in read_records(output / "tasks.jsonl")[1]}


@pytest.mark.slow
def test_both_tasks_run_in_all_modes_and_go_on_where_they_were_killed(wide, tmp_path, nld, capsys) -> None:
    words = [wide, *TASKS, "--output", tmp_path / "out"]
    assert nld(*words) == 0
    said = capsys.readouterr().out
    answers = answers_of(tmp_path / "out")
    texts = {mode: [answers[f"generate {mode} nld_arithmetic {n} 0"]["text"] for n in range(6)] for mode in MODES}
    assert texts["ar"] == texts["self-spec"] == texts["quadratic"] and all(len(text) > 3 for text in texts["ar"])
    figures = json.loads((tmp_path / "out" / "tasks.json").read_text())
    scores = {(score["task"], score["mode"], score["figure"]): score for score in figures["scores"]}
    assert len(scores) == 4 * 3 and all(score["documents"] == 6 for score in scores.values())
    choices = {scores["nld_cloze", mode, "acc"]["value"] for mode in MODES}
    assert len(choices) == 1, "choices are AR's in every mode"
    speed = {mode: scores["nld_arithmetic", mode, "exact_match, first-number"]["tokens_per_forward"] for mode in MODES}
    assert speed["ar"] == 1 and all(f"{value:.4f}" in said for value in speed.values())
    used = [answers[f"generate self-spec nld_arithmetic {n} 0"] for n in range(6)]
    tokens, forwards = (sum(answer[name] for answer in used) for name in ("tokens", "forwards"))
    assert speed["self-spec"] == tokens / forwards
    assert "Tasks:" in (tmp_path / "out" / "report.html").read_text()
    # Killed within the answers of the second mode: the same records, and the same figures.
    records = tmp_path / "out" / "tasks.jsonl"
    whole = records.read_text()
    lines = whole.splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if "generate diffusion nld_arithmetic 3" in line)
    records.write_text("".join(lines[:place]) + lines[place][:9])
    (tmp_path / "out" / "tasks.json").unlink()
    assert nld(*words) == 0
    assert records.read_text() == whole and json.loads((tmp_path / "out" / "tasks.json").read_text()) == figures


def test_the_documents_are_always_the_same_and_can_be_answered() -> None:
    cloze, sums = cloze_documents()["test"], arithmetic_documents()["test"]
    assert list(cloze) == list(cloze_documents(pretrained="x")["test"]) and len(cloze) > 90
    for row in cloze:
        assert len(set(row["choices"])) == 4 and row["context"].count("\n") == 12
        assert row["choices"][row["answer"]] not in row["context"].split("\n")
    shares = [list(cloze["answer"]).count(place) / len(cloze) for place in range(4)]
    assert min(shares) > 0.2, "no place is right more often than the others"
    assert len({row["question"] for row in sums}) == 100
    assert all(str(eval(row["question"].split("\n")[-1].rstrip(" ="))) == row["answer"] for row in sums)


BAD = {
    "task": (["--tasks", "nld_arithmetik"], "no task nld_arithmetik"),
    "mode": (["--mode", "fast"], "--mode fast"),
    "limit": (["--limit", 0], "--limit 0"),
    "no name": (["--tasks", ","], "--tasks ,"),
    "folder": (["--tasks-folder", "nowhere"], "no folder nowhere"),
    "context": (["--tasks", "nld_cloze", "--mode", "ar"], "128 positions"),
}


@pytest.mark.parametrize(("words", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(folder, tmp_path, nld, capsys, words, said) -> None:
    assert nld(folder, *TASKS, "--output", tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err
