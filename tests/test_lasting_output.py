"""A process that outlives its terminal, with real pipes and a real terminal."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, time
from pathlib import Path
from nld_train.lasting_output import outlive_terminal
outlive_terminal()
print("first", flush=True)
while not Path(sys.argv[1], "gone").exists():
    time.sleep(0.01)
for _ in range(3):
    print("x" * 100_000, flush=True)
    print("y", file=sys.stderr, flush=True)
Path(sys.argv[1], "done").touch()
"""


def command(folder: Path) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(folder)]


def test_a_closed_pipe(tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    process.stderr.close()
    (tmp_path / "gone").touch()
    assert process.wait(30) == 0
    assert (tmp_path / "done").exists()


def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """The kernel hangs up: SIGHUP to its processes, and errors for what they write."""
    parent, child = pty.openpty()
    process = subprocess.Popen(command(tmp_path), stdin=child, stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    assert os.read(parent, 5) == b"first"
    os.close(parent)
    process.send_signal(signal.SIGHUP)
    (tmp_path / "gone").touch()
    assert process.wait(30) == 0
    assert (tmp_path / "done").exists()


def test_streams_that_were_closed_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "gone").touch()
    inner = "import os, sys; os.fstat(0), os.fstat(1), os.fstat(2); print(1, flush=True)"
    script = SCRIPT + f"import subprocess; subprocess.run([sys.executable, '-c', {inner!r}], check=True)\n"
    words = " ".join(f"'{word}'" for word in (sys.executable, "-c", script.replace("'", '"'), str(tmp_path)))
    assert subprocess.run(["bash", "-c", f"{words} <&- >&- 2>&-"], check=False).returncode == 0
    assert (tmp_path / "done").exists()
