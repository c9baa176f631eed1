"""OUTPUT/lock: one start at a time writes into an output folder.

The file names its owner, and the owner writes a growing count of beats into it. Locks of the kernel are not enough:
many shared file systems have none, or keep those of a node that has died. An owner is dead where its process is gone
from this machine or, seen from another machine, where the file stays the same for PATIENCE seconds. No clocks are
compared. An owner that was only held up, and finds another's name in the file, gives way.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from nld_train.errors import UserError
from nld_train.files import full_disk_refused, unwritable_refused
from nld_train.run_folder.paths import LOCK

logger = logging.getLogger(__name__)
BEAT = 5.0  # seconds between two beats
PATIENCE = 30.0  # seconds without a beat after which an owner on another machine is taken for dead
BEATS_WIDTH = 12  # digits, so that the file keeps its length


@dataclass(frozen=True)
class LockOwner:
    """The process that a lock names."""

    host: str
    machine: str  # this boot of this machine, and the namespace in which `pid` counts
    pid: int
    ticks: int  # when the process started: numbers of processes are used again
    job: str  # number of Slurm's job; "" without Slurm
    since: str
    token: str  # of this one lock

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


def this_process() -> LockOwner:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    since = datetime.now().isoformat(" ", timespec="seconds")
    job, token = os.environ.get("SLURM_JOB_ID", ""), uuid.uuid4().hex
    ticks = _start_ticks(os.getpid())
    assert ticks is not None, "this process is alive"
    return LockOwner(socket.gethostname(), machine, os.getpid(), ticks, job, since, token)


def _start_ticks(pid: int) -> int | None:
    """When a process of this machine started, in ticks after the boot; None where it has ended."""
    try:
        state, *words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(words[18])


@contextlib.contextmanager
def held_output(output: Path, when_lost: Callable[[LockOwner | None], None]) -> Iterator[None]:
    """Keep other starts out of an output folder, which is made where it is missing, while the block runs.

    when_lost is called, from another thread, once the lock has gone to another owner (None: to nobody). Raises:
    UserError where another process holds the folder, or where it cannot be written.
    """
    path, own = output / LOCK, this_process()
    with unwritable_refused(output), full_disk_refused(output):
        output.mkdir(parents=True, exist_ok=True)
        _take_lock(path, own)
    released = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, own, released, when_lost), daemon=True)
    beats.start()
    try:
        yield
    finally:
        released.set()
        beats.join()
        if _named_owner(_read_lock(path)) == own:
            path.unlink()


def check_output_free(output: Path) -> None:
    """Refuse an output folder that a living start holds; nothing is written. Raises: UserError."""
    seen = _read_lock(output / LOCK)
    if seen:
        _refuse_living_owner(output / LOCK, seen, this_process())


def _take_lock(path: Path, own: LockOwner) -> None:
    while not _made_lock(path, own):
        seen = _read_lock(path)
        _refuse_living_owner(path, seen, own)
        logger.warning("%s was held by %s, which is no more", path.parent, _named_owner(seen) or "an unknown start")
        _take_away(path, seen, own)


def _refuse_living_owner(path: Path, seen: bytes, own: LockOwner) -> None:
    owner = _named_owner(seen)
    if _is_alive(path, owner, own, seen):
        raise UserError(
            f"{path.parent} is in use by {owner or 'another start'}",
            "one start at a time in an output folder",
            "wait for it to end, stop it, or choose another output=",
        )


def _made_lock(path: Path, own: LockOwner) -> bool:
    """Make the file, unless there is one."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with open(handle, "wb") as file:
        file.write(_lock_content(own, 0))
    return True


def _lock_content(own: LockOwner, beats: int) -> bytes:
    return f"{json.dumps(asdict(own))}\n{beats:0{BEATS_WIDTH}}\n".encode()


def _read_lock(path: Path) -> bytes:
    """What is in the file; empty where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _named_owner(content: bytes) -> LockOwner | None:
    """The owner that the file names; None where it was cut off while it was written."""
    try:
        named = json.loads(content.split(b"\n")[0])
        return LockOwner(**named) if set(named) == {entry.name for entry in fields(LockOwner)} else None
    except (ValueError, TypeError):
        return None


def _is_alive(path: Path, owner: LockOwner | None, own: LockOwner, seen: bytes) -> bool:
    if owner is not None and owner.machine == own.machine:
        return _start_ticks(owner.pid) == owner.ticks
    logger.info("%s is held by %s: waiting %.0f s for a sign of life", path.parent, owner or "a start", PATIENCE)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE / 10))
        now = _read_lock(path)
        if now != seen:
            return now != b""  # it beats, or it was given up
    return False


def _take_away(path: Path, seen: bytes, own: LockOwner) -> None:
    """Remove the lock of a dead owner. Of several starts that do this at once, one goes on: the others find that what
    they have moved is the new lock, and put it back."""
    moved = path.with_name(f".{path.name}.{own.token}")
    try:
        os.rename(path, moved)
    except FileNotFoundError:
        return
    if _read_lock(moved) != seen:
        with contextlib.suppress(FileExistsError):
            os.link(moved, path)
    moved.unlink()


def _beat(path: Path, own: LockOwner, released: threading.Event, when_lost: Callable[[LockOwner | None], None]) -> None:
    beats = 0
    while not released.wait(BEAT):
        try:
            found = _read_lock(path)
            if _named_owner(found) != own:
                when_lost(_named_owner(found))
                return
            beats += 1
            with path.open("r+b") as file:
                file.write(_lock_content(own, beats))
        except OSError as error:  # of a file system that is away for a moment; a rank that writes to it says more
            logger.warning("%s: %s", path, error.strerror)
