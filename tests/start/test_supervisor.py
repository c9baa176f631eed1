"""Requests to stop, between real processes: a launcher, and a child that stands for torchrun."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train.exit_status import LEFT_AT_ONCE
from nld_train.signals import PARENT, SIGNALS
from nld_train.start.supervisor import first_killed_rank

LAUNCHER = """
import logging, os, sys
from pathlib import Path
from nld_train.start.supervisor import TorchrunSupervisor
logging.basicConfig(level=logging.INFO, format="%(message)s")
folder = Path(sys.argv[1])
command, log = [sys.executable, "-c", sys.argv[2]], folder / "launcher.log"
with TorchrunSupervisor("tiny", folder / "stop", first=True) as supervisor:
    status = supervisor.run(command, os.environ, log)
sys.exit(status)
"""
# Ready, it waits for the stop file and leaves in order.
OBEDIENT = """
import sys, time
from pathlib import Path
from nld_train.signals import StopRequest, die_with_parent
die_with_parent()
folder = Path({folder!r})
request = StopRequest()
request.listen()
(folder / "ready").touch()
while not ((folder / "stop").exists() or request.asked()):
    time.sleep(0.01)
(folder / "left").write_text("by file" if (folder / "stop").exists() else "by signal")
"""
DEAF = "import time; from pathlib import Path; Path({folder!r}, 'ready').touch(); time.sleep(60)"


@pytest.fixture
def launch(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Starts the launcher with a child, and waits until the child is there."""

    def start(child: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LAUNCHER, str(tmp_path), child.format(folder=str(tmp_path))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for((tmp_path / "ready").exists)
        return process

    return start


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited 30 s"
        time.sleep(0.01)


def child_of(process: subprocess.Popen[str]) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_launcher_is_passed_on(launch, tmp_path: Path, number: signal.Signals) -> None:
    process = launch(OBEDIENT)
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert f"{number.name}: stopping tiny after this step" in said
    assert (tmp_path / "left").read_text() == "by file"
    assert not (tmp_path / "stop").exists(), "the next start would stop at once"


def test_a_signal_to_the_child_alone_is_taken(launch, tmp_path: Path) -> None:
    process = launch(OBEDIENT)
    subprocess.run(["kill", "-USR1", str(child_of(process))], check=True)
    assert process.wait(timeout=30) == 0
    assert (tmp_path / "left").read_text() == "by signal"


def test_a_signal_before_the_child_listens_is_not_lost(launch, tmp_path: Path) -> None:
    late = OBEDIENT.replace("request = ", "(folder / 'ready').touch(); time.sleep(1); request = ")
    process = launch(late)
    subprocess.run(["kill", "-TERM", str(child_of(process))], check=True)
    assert process.wait(timeout=30) == 0
    assert (tmp_path / "left").read_text() == "by signal"


def test_the_second_ctrl_c_leaves_at_once(launch) -> None:
    process = launch(DEAF)
    child = child_of(process)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert "Ctrl-C again leaves at once" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == LEFT_AT_ONCE
    assert not Path(f"/proc/{child}").exists()


def test_a_killed_launcher_takes_its_child_along(launch) -> None:
    process = launch(OBEDIENT)
    child = child_of(process)
    process.kill()
    process.wait(timeout=30)
    status = Path(f"/proc/{child}/status")
    wait_for(lambda: not status.exists() or "(zombie)" in status.read_text())


def test_a_child_that_comes_after_the_end_of_its_parent_ends_too() -> None:
    script = "from nld_train.signals import die_with_parent; die_with_parent(); print('alive')"
    for parent, said in ((os.getpid(), "alive\n"), (os.getpid() + 1, "")):
        variables = {**os.environ, PARENT: str(parent)}
        done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
        assert done.stdout == said


def test_a_failure_is_told_with_its_log(launch, tmp_path: Path) -> None:
    words = "E0101 failed (exitcode: -9) local_rank: 1 (pid: 5) of binary: python"
    process = launch(f"import sys; from pathlib import Path; Path({{folder!r}}, 'ready').touch(); sys.exit({words!r})")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said == f"tiny failed: rank 1 was killed by SIGKILL; see {tmp_path}/launcher.log\n"


def test_a_rank_that_failed_by_itself_has_told_why() -> None:
    assert first_killed_rank("failed (exitcode: 1) local_rank: 0 (pid: 5)") == ""
    assert first_killed_rank("") == ""
