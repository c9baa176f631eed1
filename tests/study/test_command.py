"""`nld study`, from the command line to the table, on real runs of a few steps."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nld_train.cli import parse_words
from nld_train.commands.study import run_study
from nld_train.errors import UserError
from nld_train.run_folder.checkpoints import complete_steps
from nld_train.study.catalog import STUDIES
from nld_train.study.miniature import Miniature
from nld_train.study.study_figures import StudyResult
from nld_train.study.study_table import study_html, study_markdown, study_text

NLD = [sys.executable, "-m", "nld_train.cli"]


def test_without_a_name_the_studies_are_listed_with_their_time(capsys):
    assert run_study(parse_words(["study", "--workers", "1"])) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in STUDIES) and "minutes" in listed
    alone = sum(int(line.split()[-1]) for line in listed.splitlines()[1:-1])
    assert int(listed.splitlines()[-1].split()[-1]) < 0.8 * alone, "what they share is trained once"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["alpah"], "study alpah"),
        (["alpha", "--seeds", "0"], "--seeds 0"),
        (["alpha", "--steps", "3"], "--steps 3"),
        (["alpha", "--workers", "1000000"], "--workers 1000000"),
    ],
)
def test_what_cannot_be_done_is_refused(words, said, tmp_path):
    with pytest.raises(UserError, match=said):
        run_study(parse_words(["study", *words, "--output", str(tmp_path / "out")]))
    assert not (tmp_path / "out").exists()


def made_up_result(seeds: int) -> StudyResult:
    """Figures of the alpha study in which arm number a has a + seed / 100."""
    study = STUDIES["alpha"]
    values = {
        arm.name: {figure.name: [number + seed / 100 for seed in range(seeds)] for figure in study.figures}
        for number, arm in enumerate(study.arms)
    }
    return StudyResult(study, 200, range(1, 1 + seeds), values)


@pytest.mark.parametrize("seeds", [1, 3])
def test_tables_and_page_show_every_arm_claim_and_seed(seeds):
    result = made_up_result(seeds)
    text, markdown, page = study_text(result), study_markdown(result), study_html(result)
    for shown in (text, markdown, page):
        assert all(arm.name in shown for arm in result.study.arms)
        assert all(claim.paper in shown.replace("&gt;", ">") for claim in result.study.claims)
    assert page.count("<svg") == len(result.study.figures)
    assert all(f"seed {seed}" in page for seed in result.seeds)
    # alpha 0.3 is arm 2 and alpha 0.1 is arm 0: its losses are higher by exactly 2, without any spread.
    assert ("opposite direction" in text) == (seeds > 1)


@pytest.mark.long
@pytest.mark.megatron
def test_a_stopped_study_goes_on_and_every_study_ends_in_a_table(tmp_path):
    """Killed while it trains; the same command trains what is left, and nothing twice."""
    command = [*NLD, "study", "all", "--steps", "4", "--seeds", "1", "--output", str(tmp_path)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert started.stdout is not None
    for line in started.stdout:
        if line.startswith("[3/"):
            break
    started.send_signal(signal.SIGKILL)
    started.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir() if complete_steps(path)}
    assert len(finished) >= 3
    time.sleep(2)  # its children end with it
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert not {name for name in finished if f"] {name.rpartition('_')[0]}:" in done.stderr}
    for name, study in STUDIES.items():
        assert study.question in done.stdout
        assert all(arm.name in (tmp_path / f"{name}.md").read_text() for arm in study.arms)
    again = subprocess.run(command, capture_output=True, text=True)
    assert ", 0 to train" in again.stdout and "loading Megatron" not in again.stderr
    assert all(study.question in again.stdout for study in STUDIES.values())


@pytest.mark.long
@pytest.mark.megatron
def test_a_run_that_fails_is_named_with_its_log(tmp_path):
    """A file stands where the first run's checkpoints should be."""
    first = Path(STUDIES["ar-loss"].arms[0].runs(Miniature(tmp_path, 4), 1)[0].output)
    first.mkdir(parents=True)
    (first / "checkpoints").write_text("")
    command = [*NLD, "study", "ar-loss", "--steps", "4", "--seeds", "1", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "ar_seed1 failed: read the end of" in done.stdout
