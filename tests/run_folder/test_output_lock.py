"""One start at a time: between real processes, and with the locks that dead and far ones leave."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.run_folder import output_lock
from nld_train.run_folder.output_lock import LockOwner, check_output_free, held_output, this_process
from nld_train.run_folder.paths import LOCK

HOLDER = """
import sys, time
from pathlib import Path
from nld_train.errors import UserError
from nld_train.run_folder.output_lock import held_output
try:
    with held_output(Path(sys.argv[1]), print):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except UserError as error:
    print(error, flush=True)
"""


def nobody(owner: LockOwner | None) -> None:
    raise AssertionError(f"lost to {owner}")


def holder(output: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(output), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said_by(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_lock, "PATIENCE", 0.5)
    monkeypatch.setattr(output_lock, "BEAT", 0.05)


def leave_lock(output: Path, owner: LockOwner) -> Path:
    (output / LOCK).write_text(f"{json.dumps(asdict(owner))}\n{0:012}\n")
    return output / LOCK


def test_a_second_start_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    first = holder(tmp_path, 60)
    assert said_by(first) == "held\n"
    lock = (tmp_path / LOCK).read_bytes()
    with pytest.raises(UserError, match=f"is in use by process {first.pid} on .*, since 20"):
        held_output(tmp_path, nobody).__enter__()
    with pytest.raises(UserError, match=f"is in use by process {first.pid} "):
        check_output_free(tmp_path)
    assert (tmp_path / LOCK).read_bytes()[:-14] == lock[:-14], "nothing was touched"
    # Killed, it holds nothing any more, and nobody waits.
    first.kill()
    first.wait(30)
    check_output_free(tmp_path)
    began = time.monotonic()
    with held_output(tmp_path, nobody):
        assert time.monotonic() - began < 5
    assert not any(tmp_path.iterdir()), "a lock that is given up leaves nothing behind"


def test_a_number_that_another_process_has_now_is_no_holder(tmp_path: Path) -> None:
    own = this_process()
    leave_lock(tmp_path, replace(own, ticks=own.ticks - 1, token="before"))
    with held_output(tmp_path, nobody):
        pass


@pytest.mark.usefixtures("quick")
def test_a_holder_elsewhere_is_dead_when_it_gives_no_sign_of_life(tmp_path: Path) -> None:
    leave_lock(tmp_path, replace(this_process(), machine="another", host="n2"))
    with held_output(tmp_path, nobody):
        pass


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [b"", b'{"host": "n2"', b"\x00\x00"])
def test_a_lock_that_was_cut_off_is_waited_for_and_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with held_output(tmp_path, nobody):
        pass


def far_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[str]:
    """A process whose lock looks as if it came from another machine, and which beats."""
    monkeypatch.setattr(output_lock, "PATIENCE", 2.0)
    elsewhere = "import nld_train.run_folder.output_lock as lock; own = lock.this_process()\n"
    elsewhere += "from dataclasses import replace; lock.BEAT = 0.1\n"
    elsewhere += "lock.this_process = lambda: replace(own, machine='another', host='n2')\n"
    command = [sys.executable, "-c", elsewhere + HOLDER, str(tmp_path), "60"]
    far = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert said_by(far) == "held\n"
    return far


def test_a_holder_elsewhere_that_beats_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = far_holder(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="in use by process .* on n2"):
        held_output(tmp_path, nobody).__enter__()
    far.kill()
    far.wait(30)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited 30 s"
        time.sleep(0.02)


@pytest.mark.usefixtures("quick")
def test_a_holder_that_was_held_up_gives_way(tmp_path: Path) -> None:
    """Its folder was taken over while it was stopped; it finds the other name, and leaves the other's lock alone."""
    lost: list[LockOwner | None] = []
    other = replace(this_process(), token="other")
    with held_output(tmp_path, lost.append):
        leave_lock(tmp_path, other)
        wait_for(lambda: bool(lost))
    assert lost == [other]
    assert json.loads((tmp_path / LOCK).read_text().splitlines()[0])["token"] == "other"


def test_of_many_starts_at_once_one_goes_on(tmp_path: Path) -> None:
    own = this_process()
    leave_lock(tmp_path, replace(own, ticks=own.ticks - 1))
    all_of_them = [holder(tmp_path, 3) for _ in range(12)]
    said = [said_by(process) for process in all_of_them]
    assert sorted(line.startswith("held") for line in said).count(True) == 1, said
    for process in all_of_them:
        process.wait(30)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in"):
        held_output(tmp_path / "file" / "run", nobody).__enter__()
