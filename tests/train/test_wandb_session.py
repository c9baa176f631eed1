"""W&B that fails in every way that it can: the run is recorded offline and goes on, in bounded time."""

import subprocess
import sys
from pathlib import Path

import pytest

from nld_train.run_folder.checkpoints import newest_complete_step
from tests.flow.started import Started
from tests.train.wandb_server import KEY, open_server

ROOT = Path(__file__).parents[2]


def session(kind: str, log_wandb: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.train.wandb_server", kind, log_wandb, str(folder)]
    return subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False
    )


def recorded(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / "wandb").glob(f"{name}-*/run-*.wandb") if path.stat().st_size > 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("closed", "no answer from http://127.0.0.1:"),
        ("silent", "no answer from http://127.0.0.1:"),
        ("refusing", "user is not logged in"),
    ],
)
def test_a_server_that_does_not_take_the_run_is_gone_without(tmp_path: Path, kind: str, said: str) -> None:
    done = session(kind, "auto", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SAID")]
    assert line.startswith(f"SAID W&B: {said}"), line
    assert f"recorded offline in {tmp_path}/wandb for `wandb sync`; training goes on" in line
    assert recorded(tmp_path, "offline-run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"), [("leaving", "Timed out finishing run."), ("nonsense", "HandleAbandonedError")]
)
def test_a_server_that_goes_away_keeps_no_run_from_its_end(tmp_path: Path, kind: str, said: str) -> None:
    """The second kills wandb's own process by what it answers."""
    done = session(kind, "online", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    state, line, seconds = done.stdout.splitlines()
    assert state == "online"
    assert line == f"SAID W&B: {said}; what it has not sent is recorded in {tmp_path}/wandb for `wandb sync`"
    assert float(seconds.split()[1]) < 60
    assert recorded(tmp_path, "run")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "said"), [("closed", "no answer from"), ("refusing", "user is not logged in")])
def test_a_run_that_requires_it_stops(tmp_path: Path, kind: str, said: str) -> None:
    done = session(kind, "required", tmp_path)
    assert done.returncode == 1 and said in done.stderr
    assert "SAID" not in done.stdout and not recorded(tmp_path, "offline-run")


@pytest.mark.megatron
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_a_run_with_a_key_and_no_network(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", open_server("closed")[0])
    words = ["--nproc", "1", "train.iterations=2", "train.eval_batches=0", f"log.wandb={mode}"]
    run = Started(prepared, tmp_path / "run", *words)
    status = run.end()
    if mode == "required":
        assert status == 1 and "rank 0 failed: OSError: no answer from http://127.0.0.1:" in run.said
        assert newest_complete_step(run.output) is None
    else:
        assert status == 0, run.said[-2000:]
        assert run.said.count("W&B: no answer from http://127.0.0.1:") == 1
        assert run.steps() == [1, 2] and newest_complete_step(run.output) == 2
        assert recorded(run.output, "offline-run")
