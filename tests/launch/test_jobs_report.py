"""The chain of a run's jobs, from records as runs write them."""

import json
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.errors import UserError
from nld_train.exit_status import UNHEALTHY_NODE
from nld_train.launch.jobs_report import cancel_jobs, chain_report, run_attempts_report
from nld_train.run_folder.attempts import (
    read_attempts,
    record_end,
    record_requeue_decision,
    record_start,
    record_submission,
)
from nld_train.run_folder.paths import JOBS


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of three starts: stopped by Slurm at 40, killed behind 60, and finished at 100."""
    run = recipe.load_recipe("tiny_stage1_ar", ["train.iterations=100", "optimizer.warmup_iterations=0"])
    (tmp_path / "run.json").write_text(recipe.run_to_json(run))
    for restart, (first, last) in enumerate([(0, 40), (40, None), (60, 100)]):
        record_start(tmp_path, first, ("n1", "n2"), {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restart)})
        if last is not None:
            record_end(tmp_path, last, status=0 if last == 100 else 75)
    lines = [json.dumps({"kind": "train", "step": step, "AR loss": 10 - step / 50}) for step in range(1, 101)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    return tmp_path


def test_every_start_is_shown_with_what_it_reached_and_why_it_ended(output: Path) -> None:
    title, _, first, second, third = run_attempts_report(output, {}).splitlines()
    assert "step 100 of 100" in title
    for line, said in (
        (first, ("7 ", "0 -> 40", "9.2000", "asked to stop, saved")),
        (second, ("7 restart 1", "40 -> 60", "8.8000", "killed, or its node lost")),
        (third, ("7 restart 2", "60 -> 100", "8.0000", "finished")),
    ):
        assert all(words in line for words in said), line
    assert f"{40 * 8 * 256:,}" in first, "tokens"


def test_the_last_start_may_be_running(output: Path) -> None:
    record_start(output, 100, ("node 0",), {})
    last = run_attempts_report(output, {}).splitlines()[-1]
    assert last.startswith("by hand") and "running, or" in last


def test_a_line_that_was_cut_off_does_not_count(output: Path) -> None:
    before = read_attempts(output)
    with (output / JOBS).open("a") as file:
        file.write('{"time": "2026-')
    assert read_attempts(output) == before and len(before) == 3


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json"):
        chain_report([tmp_path])


def test_a_run_without_jobs_has_nothing_to_cancel(output: Path) -> None:
    with pytest.raises(UserError, match="no job of"):
        cancel_jobs([output])


def test_nodes_and_the_end_of_a_chain_are_shown(output: Path) -> None:
    record_start(output, 100, ("n1", "n2"), {"SLURM_JOB_ID": "8"})
    record_end(output, 100, UNHEALTHY_NODE, {"n1": "7 GPUs, expected 8"})
    record_requeue_decision(
        output, "left", {"n1": "7 GPUs, expected 8", "n2": "it does not answer"}, ["n1"], ["n2"], ""
    )
    record_start(output, 100, ("n2", "n3"), {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"})
    record_end(output, 100, 1)
    record_requeue_decision(output, "preempted", {}, [], [], "3 starts saved nothing")
    lines = [line.strip() for line in run_attempts_report(output, {}).splitlines()[5:]]
    assert lines[0].startswith("8 ") and lines[0].endswith("a node failed its check")
    assert lines[1:3] == ["node n1: 7 GPUs, expected 8", "node n2: it does not answer"]
    assert lines[3] == "left out from then on: n1"
    assert lines[4] == "kept, or the job would not have the nodes to run: n2"
    assert lines[5].startswith("8 restart 1") and lines[5].endswith("failed with status 1 (preempted)")
    assert lines[6] == "the chain stopped: 3 starts saved nothing"


def test_a_chain_is_shown_in_the_order_it_was_launched(output: Path, tmp_path: Path) -> None:
    later = tmp_path / "a_later_stage"
    later.mkdir()
    record_submission(later, "9", None)
    record_submission(later, "10", str(tmp_path / "none"))
    record_submission(later, "11", str(tmp_path))
    (tmp_path / "hf").mkdir()  # no run; `nld jobs out/*` names such folders too
    first, second = chain_report([later, tmp_path / "hf", output]).split("\n\n")
    assert first.startswith("tiny_stage1_ar: step 100 of 100")
    assert second.splitlines() == [
        f"{later}: not started",
        f"export to {tmp_path / 'none'}: not there, see its log",
        f"export to {tmp_path}: done",
    ]
