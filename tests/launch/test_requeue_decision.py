"""Whether a job goes on, and without which nodes: from records as runs write them, and states as Slurm prints them."""

import subprocess
import sys
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.errors import UserError
from nld_train.exit_status import UNHEALTHY_NODE
from nld_train.launch.requeue_decision import (
    UNRESPONSIVE,
    AttemptEnd,
    close_attempt,
    nodes_to_exclude,
    parse_node_states,
)
from nld_train.run_folder.attempts import read_attempts, record_end, record_start, starts_without_progress
from nld_train.run_folder.refusal import forget_refusal, record_refusal
from nld_train.run_folder.restart_limit import check_restart_limit

NLD = Path(sys.executable).with_name("nld")
FOUR = "n1 allocated\nn2 allocated\nn3 idle\nn4 mixed\n"


def job(restart: int) -> dict[str, str]:
    return {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restart)}


def ending(
    status: int = 1, how: str = "left", silent: str = "", left_out: str = "", partition: str = FOUR
) -> AttemptEnd:
    return AttemptEnd(
        status, how, ("n1", "n2"), tuple(silent.split()), tuple(left_out.split()), parse_node_states(partition)
    )


def start(output: Path, restart: int) -> None:
    record_start(output, 0, ("n1", "n2"), job(restart))


def test_a_failed_start_goes_on_until_three_saved_nothing(tmp_path: Path) -> None:
    for restart in range(3):
        start(tmp_path, restart)
        record_end(tmp_path, 0, 1)
        decision = close_attempt(tmp_path, ending(), job(restart))
        assert bool(decision.stop_reason) == (restart == 2)
    assert (
        "3 starts of job 7 in a row saved no new step" in decision.stop_reason
        and "still at step 0" in decision.stop_reason
    )
    assert read_attempts(tmp_path)[-1].stopped == decision.stop_reason


def test_a_new_job_and_a_new_step_count_from_the_start(tmp_path: Path) -> None:
    for restart, (first, last) in enumerate([(0, 0), (0, 40), (40, 40), (40, 40)]):
        record_start(tmp_path, first, ("n1",), job(restart))
        record_end(tmp_path, last, 1)
    assert starts_without_progress(read_attempts(tmp_path), "7", 40) == 2
    assert starts_without_progress(read_attempts(tmp_path), "8", 40) == 0
    record_start(tmp_path, 40, ("n1",), job(4))
    assert starts_without_progress(read_attempts(tmp_path), "7", 40) == 3, "killed without a word"
    assert starts_without_progress(read_attempts(tmp_path), "7", 50) == 0, "it had saved step 50 before"


def test_a_start_that_left_no_word_is_written_down(tmp_path: Path) -> None:
    close_attempt(tmp_path, ending(status=137), job(0))
    start(tmp_path, 1)
    close_attempt(tmp_path, ending(status=143, how="timeout"), job(1))
    first, second = read_attempts(tmp_path)
    assert (first.restart, first.status, first.nodes) == (0, 137, ("n1", "n2"))
    assert (second.restart, second.status, second.how) == (1, 143, "timeout")


def test_a_cancelled_job_does_not_go_on(tmp_path: Path) -> None:
    start(tmp_path, 0)
    assert close_attempt(tmp_path, ending(status=75, how="cancelled"), job(0)).stop_reason == "cancelled"


def test_a_job_that_a_rank_refused_does_not_go_on_whatever_srun_says(tmp_path: Path) -> None:
    """The other nodes are killed while they wait for the rank, and srun's status is the highest of all."""
    start(tmp_path, 0)
    record_refusal(tmp_path, "out of memory on the largest batch")
    decision = close_attempt(tmp_path, ending(status=143), job(0))
    assert decision.stop_reason == "refused: out of memory on the largest batch"
    start(tmp_path, 1)
    forget_refusal(tmp_path)
    assert not close_attempt(tmp_path, ending(status=143), job(1)).stop_reason


def test_failed_nodes_are_left_out(tmp_path: Path) -> None:
    start(tmp_path, 0)
    record_end(tmp_path, 0, UNHEALTHY_NODE, {"n1": "7 GPUs, expected 8"})
    decision = close_attempt(tmp_path, ending(status=UNHEALTHY_NODE, silent="n2"), job(0))
    assert decision.excluded == ("n1", "n2") and not decision.kept_unhealthy
    assert decision.unhealthy == {"n1": "7 GPUs, expected 8", "n2": UNRESPONSIVE}


@pytest.mark.parametrize(
    ("partition", "left_out", "chosen"),
    [
        (FOUR, "", ("n1", "n2")),
        (FOUR, "n3", ("n1",)),
        (FOUR.replace("n3 idle", "n3 down*"), "", ("n1",)),
        (FOUR.replace("n3 idle", "n3 drained"), "n4", ()),
        ("n1 allocated\nn2 down*\nn3 idle", "", ("n2",)),
        ("n1 allocated\nn2 allocated*\n", "", ()),
    ],
)
def test_never_so_many_that_the_job_cannot_run(partition: str, left_out: str, chosen: tuple[str, ...]) -> None:
    names = ["n2"] if "n2 down" in partition or "*" in partition.splitlines()[1] else ["n1", "n2"]
    assert nodes_to_exclude(names, ending(left_out=left_out, partition=partition)) == chosen


def test_nodes_that_slurm_lost_are_seen_in_their_state(tmp_path: Path) -> None:
    start(tmp_path, 0)
    decision = close_attempt(
        tmp_path, ending(how="requeued", partition=FOUR.replace("n2 allocated", "n2 down*")), job(0)
    )
    assert decision.excluded == ("n2",)


def test_a_start_after_too_many_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Slurm itself queued the job again, and nobody asked."""
    run = recipe.load_recipe("tiny_stage1_ar", [f"output={tmp_path}"])
    for name, value in job(3).items():
        monkeypatch.setenv(name, value)
    for restart in range(2):
        start(tmp_path, restart)
    check_restart_limit(run)
    start(tmp_path, 2)
    with pytest.raises(UserError, match="3 starts of job 7"):
        check_restart_limit(run)
    monkeypatch.setenv("NLD_STARTS_WITHOUT_PROGRESS", "4")
    check_restart_limit(run)


def test_half_a_list_of_nodes_is_refused() -> None:
    with pytest.raises(UserError, match="NAME STATE"):
        parse_node_states("n1")


@pytest.mark.slow
def test_the_script_reads_nodes_and_a_status(tmp_path: Path) -> None:
    start(tmp_path, 0)
    command = [str(NLD), "requeue", "tiny_stage1_ar", f"output={tmp_path}", "--status", "1", "--how"]
    variables = {**job(0), "NLD_NODES": "n1 n2", "PATH": "/usr/bin:/bin"}

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words], input=FOUR, env=variables, capture_output=True, text=True, check=False
        )

    done = ask("left", "--silent", "n2\n")
    assert (done.returncode, done.stdout) == (0, "n2\n"), done.stderr
    assert "node n2 failed: it does not answer," in done.stderr and "the same job goes on" in done.stderr
    done = ask("cancelled")
    assert (done.returncode, done.stdout) == (3, "\n") and "the chain stops: cancelled" in done.stderr
    assert ask("sideways").returncode == 2
