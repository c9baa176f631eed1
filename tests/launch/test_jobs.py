"""The chain of a run's jobs, from records as runs write them."""

import json
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.errors import UserError
from nld_train.job_record import JOBS, attempts, record_end, record_start
from nld_train.launch.jobs import cancel, jobs_report


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of three starts: stopped by Slurm at 40, killed behind 60, and finished at 100."""
    run = recipe.load("tiny_stage1_ar", ["train.iterations=100", "optimizer.warmup_iterations=0"])
    (tmp_path / "run.json").write_text(recipe.to_json(run))
    for restart, (first, last) in enumerate([(0, 40), (40, None), (60, 100)]):
        record_start(tmp_path, first, 2, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restart)})
        if last is not None:
            record_end(tmp_path, last, status=0 if last == 100 else 75)
    lines = [json.dumps({"kind": "train", "step": step, "AR loss": 10 - step / 50}) for step in range(1, 101)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    return tmp_path


def test_every_start_is_shown_with_what_it_reached_and_why_it_ended(output: Path) -> None:
    title, _, first, second, third = jobs_report(output).splitlines()
    assert "step 100 of 100" in title
    for line, said in (
        (first, ("7 ", "0 -> 40", "9.2000", "asked to stop, saved")),
        (second, ("7 restart 1", "40 -> 60", "8.8000", "killed, or its node lost")),
        (third, ("7 restart 2", "60 -> 100", "8.0000", "finished")),
    ):
        assert all(words in line for words in said), line
    assert f"{40 * 8 * 256:,}" in first, "tokens"


def test_the_last_start_may_be_running(output: Path) -> None:
    record_start(output, 100, 1, {})
    last = jobs_report(output).splitlines()[-1]
    assert last.startswith("by hand") and "running, or" in last


def test_a_line_that_was_cut_off_does_not_count(output: Path) -> None:
    before = attempts(output)
    with (output / JOBS).open("a") as file:
        file.write('{"time": "2026-')
    assert attempts(output) == before and len(before) == 3


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json"):
        jobs_report(tmp_path)


def test_a_run_without_jobs_has_nothing_to_cancel(output: Path) -> None:
    with pytest.raises(UserError, match="no job of"):
        cancel(output)
