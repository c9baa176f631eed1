"""jobs.jsonl with torn and foreign lines: every reader goes on with what is whole, and the rest is named once."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.errors import UserError
from nld_train.launch.jobs_report import chain_report
from nld_train.launch.requeue_decision import AttemptEnd, close_attempt
from nld_train.launch.submit import newest_training_job
from nld_train.run_folder.attempts import (
    first_recorded_time,
    read_attempts,
    read_submissions,
    record_end,
    record_start,
    record_submission,
)
from nld_train.run_folder.paths import JOBS
from nld_train.run_folder.restart_limit import check_restart_limit

JOB = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}
TIME = "2026-11-27T10:00:00.000"
START = {"time": TIME, "event": "start", "job": "7", "restart": 0, "nodes": ["n1"], "step": 0}
WRONG = {
    "torn": '{"time": "2026-11-27T10:00:00.000", "eve',
    "glued": '{"time": "2026-11-27T10:00:00.0{"time": "2026-11-27T10:00:00.000", "event": "end", "step": 1}',
    "no object": "[1, 2]",
    "deep": "[" * 100_000,
    "unknown event": json.dumps({"time": TIME, "event": "begin"}),
    "event of another kind": json.dumps({"time": TIME, "event": ["start"]}),
    "no event": json.dumps({"time": TIME}),
    "no time": json.dumps({name: value for name, value in START.items() if name != "time"}),
    "a time that is none": json.dumps({**START, "time": "yesterday"}),
    "a time with a zone": json.dumps({**START, "time": f"{TIME}+01:00"}),
    "no nodes": json.dumps({name: value for name, value in START.items() if name != "nodes"}),
    "nodes that are no names": json.dumps({**START, "nodes": [1]}),
    "a step in words": json.dumps({**START, "step": "ten"}),
    "a job that is no number": json.dumps({**START, "job": "seven"}),
    "a submission without a number": json.dumps({"time": TIME, "event": "submitted", "job": "", "export": None}),
    "an end without health": json.dumps({"time": TIME, "event": "end", "step": 1, "status": 0}),
}


def jobs(output: Path) -> None:
    assert "job" in chain_report([output])


def requeue(output: Path) -> None:
    decision = close_attempt(output, AttemptEnd(1, "left", ("n1",), (), (), {"n1": "idle"}), JOB)
    assert decision.stop_reason == ""


def resume(output: Path) -> None:
    check_restart_limit(recipe.load_recipe("tiny_stage1_ar", [f"output={output}"]))


def launch_after(output: Path) -> None:
    assert newest_training_job(output) == "7"


READERS: list[Callable[[Path], None]] = [jobs, requeue, resume, launch_after]


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    record_submission(tmp_path, "7", None)
    record_start(tmp_path, 0, ("n1",), JOB)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_line_that_no_version_writes_is_left_out_and_named_once(
    output: Path, wrong: str, read: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (output / JOBS).read_text().splitlines()
    (output / JOBS).write_text(f"{first}\n{WRONG[wrong]}\n{second}\n\n")
    with caplog.at_level(logging.WARNING):
        assert len(read_attempts(output)) == len(read_submissions(output)) == 1
        assert first_recorded_time(output) is not None
        read(output)
    (line,) = [text for text in caplog.messages if JOBS in text]
    assert f"{output / JOBS}: 1 line(s) torn or of no event, left out; the first: line 2 (" in line and "\n" not in line


def test_bytes_that_are_no_text_are_left_out(output: Path) -> None:
    with (output / JOBS).open("ab") as file:
        file.write(b'{"time": "\xff\xfe", "event": "end"}\n')
    assert len(read_attempts(output)) == 1


@pytest.mark.parametrize("event", ["end", "next"])
def test_an_end_before_any_start_is_left_out(tmp_path: Path, event: str, caplog: pytest.LogCaptureFixture) -> None:
    more = {"step": 1, "status": 1, "how": "left", "unhealthy": {}, "excluded": [], "kept": [], "stopped": ""}
    (tmp_path / JOBS).write_text(json.dumps({"time": TIME, "event": event, **more}) + "\n")
    record_start(tmp_path, 0, ("n1",), JOB)
    assert len(read_attempts(tmp_path)) == 1 and read_attempts(tmp_path)[0].status is None
    assert "line 1 (it belongs to a start, and there is none before it)" in caplog.text


def test_a_torn_end_does_not_swallow_what_is_added(output: Path) -> None:
    """Killed in the middle of a line; the next start and its end are whole."""
    with (output / JOBS).open("a") as file:
        file.write('{"time": "2026-11-27T10:00:00.000", "eve')
    record_start(output, 5, ("n2",), JOB)
    record_end(output, 9, 75)
    assert [(attempt.first_step, attempt.last_step) for attempt in read_attempts(output)] == [(0, None), (5, 9)]


def test_an_older_word_for_unhealthy_is_read(output: Path) -> None:
    with (output / JOBS).open("a") as file:
        file.write(json.dumps({"time": TIME, "event": "end", "step": 1, "status": 69, "unwell": {"n1": "sick"}}) + "\n")
    assert read_attempts(output)[0].unhealthy == {"n1": "sick"}


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write in .*: No such file"):
        record_end(tmp_path / "gone", 1, 0)
