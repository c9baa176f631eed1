"""Nothing half-written looks whole: files are made under a hidden name beside their place and renamed at the end."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from nld_train.errors import UserError, require

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a path that somebody chose may bring about; other errors, such as those of a failing disk, are none of the input.
OF_A_PATH = (
    *FULL,
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV, errno.EINVAL, errno.ENXIO),
)


def refused_path(error: OSError) -> UserError:
    """What a user is told of an error about a path."""
    return UserError(f"{error.filename}: {error.strerror}", "a path that can be read or written", "correct the path")


def check_output_file(path: Path) -> None:
    """Refuse a file that cannot be written, before any work is done for it. Raises: UserError."""
    require(path.name not in ("", ".."), f"the output {str(path)!r}", "the path of a file", "name one")
    require_plain_file(path)
    require(path.parent.is_dir(), f"no folder {path.parent}", "an existing folder", "make it, or choose another")
    with unwritable_refused(path.parent):
        tempfile.TemporaryFile(prefix=f".{path.name}.partial", dir=path.parent).close()


def require_plain_file(path: Path) -> None:
    """Refuse to replace a folder, a device or a pipe by a file. Raises: UserError."""
    require(path.is_file() or not path.exists(), f"{path} is no plain file", "a file", "choose another output")


def refuse_existing(paths: Sequence[Path]) -> None:
    """Raise UserError where an output is already there."""
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists already", "a new output", "choose another name, or pass --overwrite")


@contextlib.contextmanager
def hidden_workspace(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside `target`, removed at the end whatever happens."""
    require(target.name not in ("", ".."), f"the output {str(target)!r}", "the path of an output", "name one")
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
        if error.errno not in FULL:
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
    require_plain_file(path)
    partial = path.with_name(f".{path.name}.partial")
    with full_disk_refused(path.parent), partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
