"""Nothing half-written looks whole: files are made under a hidden name beside their place and renamed at the end."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from nld_train.errors import UserError


def refuse_existing(paths: Sequence[Path]) -> None:
    """Raise UserError where an output is already there."""
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists already", "a new output", "choose another name, or pass --overwrite")


@contextlib.contextmanager
def hidden_workspace(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside `target`, removed at the end whatever happens."""
    with unwritable_refused(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        with full_disk_refused(target.parent):
            yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def unwritable_refused(folder: Path) -> Iterator[None]:
    """Turn the failure to make something in `folder` into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror}", "a folder with write access", "choose another output"
        ) from error


@contextlib.contextmanager
def full_disk_refused(folder: Path) -> Iterator[None]:
    """Turn the errors of a full disk, or of a used-up quota, into a UserError about `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{folder}: {error.strerror}",
            "a disk with room for the output",
            "free some space and give the same command again, or choose another output",
        ) from error


@contextlib.contextmanager
def staged_files(prefix: Path, suffixes: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """A temporary prefix to write PREFIX + suffix files under; they take their names when the block ends well.

    The last suffix is renamed last, and an older file of that name is removed before any other is replaced: readers
    take the set for whole only where the last one exists.
    """
    finals = [Path(f"{prefix}{suffix}") for suffix in suffixes]
    if not overwrite:
        refuse_existing(finals)
    with hidden_workspace(prefix) as folder:
        partial = folder / prefix.name
        yield partial
        publish_files(partial, prefix, suffixes)


def publish_files(partial: Path, prefix: Path, suffixes: Sequence[str]) -> None:
    """Give `partial` + suffix files the names PREFIX + suffix, on one file system; the order of the renames is that of
    `staged`."""
    Path(f"{prefix}{suffixes[-1]}").unlink(missing_ok=True)
    for suffix in suffixes:
        os.replace(f"{partial}{suffix}", f"{prefix}{suffix}")


@contextlib.contextmanager
def staged_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well."""
    if not overwrite:
        refuse_existing([target])
    with hidden_workspace(target) as folder:
        partial = folder / "new"
        partial.mkdir()
        yield partial
        if target.exists():
            os.replace(target, folder / "old")
        os.replace(partial, target)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole: other processes see the old content or the new, never a part; so does whoever comes
    after a loss of power."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
