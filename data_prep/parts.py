"""The folder of the parts of an output, beside it: what stays when a run is cut off, and what shards leave for a merge.

One process may write all parts, or several some each; the parts are the same.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from data_prep.encode import REPORTS, TextJob
from nld_train.errors import UserError
from nld_train.files import full_disk_refused, unwritable_refused

logger = logging.getLogger(__name__)
WORK = "work.json"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of file systems without flock


@dataclass(frozen=True)
class Work:
    """What an output is made of: everything that putting its parts together needs to know."""

    key: str  # names all that the parts depend on
    sources: list[str]  # names of the inputs, without the folders they lay in
    files: int
    unread: dict[str, int]
    parts: int
    job: TextJob
    vocab_size: int
    max_bad_lines: int

    def save(self, folder: Path) -> None:
        """Write it whole into the folder of the parts. Shards that start together all do, under names of their own."""
        handle, partial = tempfile.mkstemp(prefix=f".{WORK}.", dir=folder)
        with open(handle, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(partial, folder / WORK)


def read_work(folder: Path) -> Work:
    """The work that the parts in a folder belong to."""
    content = json.loads((folder / WORK).read_text(encoding="utf-8"))
    names = {entry.name for entry in fields(Work)}
    if set(content) != names:
        got = f"{folder / WORK} has other fields: {', '.join(sorted(names ^ set(content)))}"
        raise UserError(got, "the parts of this version", "remove the folder, and prepare its parts again")
    return Work(**{**content, "job": TextJob(**content["job"])})


@dataclass(frozen=True)
class Shard:
    """One of `count` equal shares of the work, numbered from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def read_shard(text: str) -> Shard:
    """ "3/16" is the third of 16. Raises UserError."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--shard {text}", "I/N with I from 1 to N", "write for example --shard 1/16")
    return Shard(int(number), int(count))


def parts_of_shard(sizes: Sequence[int], shard: Shard) -> list[int]:
    """The parts of a shard: consecutive ones, about an equal share of the bytes. sizes: bytes of every part."""
    total, before, chosen = sum(sizes), 0, []
    for part, size in enumerate(sizes):
        # A part belongs to the shard in whose share its middle lies.
        middle = 2 * before + size
        if (middle * shard.count // (2 * total) if total else 0) + 1 == shard.number:
            chosen.append(part)
        before += size
    return chosen


def part_prefix(folder: Path, part: int) -> Path:
    return folder / f"part-{part}"


def unfinished_parts(folder: Path, work: Work) -> list[int]:
    """The parts that are not there yet."""
    done = {path.name for path in folder.glob(f"*{REPORTS}")}
    return [part for part in range(work.parts) if f"part-{part}{REPORTS}" not in done]


def parts_folders(prefix: Path) -> list[Path]:
    """Every folder of parts of an output, of whatever work."""
    return sorted(prefix.parent.glob(f".{prefix.name}.parts-*"))


@contextlib.contextmanager
def opened_parts(prefix: Path, key: str, shard: Shard | None) -> Iterator[Path]:
    """The folder of the parts, with those that an earlier run left. It is kept, but for two cases: the block says that
    it is done with (by removing the folder), or it fails before a part is finished.

    The whole work keeps everybody else out, and removes the parts of other work first; a shard keeps out the same
    shard and the whole work. Raises UserError where another process is at work.
    """
    folder = prefix.parent / f".{prefix.name}.parts-{key}"
    with unwritable_refused(prefix.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as locks, full_disk_refused(prefix.parent):
        others = [found for found in parts_folders(prefix) if found != folder]
        if shard is None:
            locks.enter_context(_locked(folder, folder, fcntl.LOCK_EX))
            for found in others:
                locks.enter_context(_locked(found, found, fcntl.LOCK_EX))
                logger.info("removing the parts of another preparation of %s: its input or options differ", prefix)
                shutil.rmtree(found)
        else:
            if others:
                logger.info("beside these parts lie those of another preparation of %s: %s", prefix, others[0])
            locks.enter_context(_locked(folder, folder, fcntl.LOCK_SH))
            own = folder / f"shard-{shard.number}-of-{shard.count}.lock"
            own.touch()
            locks.enter_context(_locked(own, folder, fcntl.LOCK_EX))
        try:
            yield folder
        except BaseException:
            if any(folder.glob(f"*{REPORTS}")):
                logger.info("finished parts stay in %s: the same command goes on from there", folder)
            elif shard is None and folder.exists():
                shutil.rmtree(folder)
            raise


@contextlib.contextmanager
def _locked(path: Path, folder: Path, kind: int) -> Iterator[None]:
    """Keep other processes out. The lock goes with the process, however that ends."""
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is at work in {folder}", "one preparation of an output at a time", "wait, or end it"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s: %s: nothing keeps a second process out", folder, error.strerror)
        yield
    finally:
        os.close(handle)
