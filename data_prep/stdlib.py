"""Real text that every machine has: the sources of the Python standard library, about 10 MB."""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from nld_train.errors import UserError
from nld_train.files import staged_folder

LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
LEAST_BYTES = 5_000_000


def stdlib_sources() -> list[Path]:
    """The .py files of this Python's standard library, sorted, without its tests and without installed packages.

    Raises UserError where the machine has no sources to speak of.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(python_files(folder))
    size = sum(file.stat().st_size for file in files)
    if size < LEAST_BYTES:
        raise UserError(
            f"{size} bytes of Python sources in {folder}",
            f"a Python with the sources of its standard library, at least {LEAST_BYTES} bytes",
            "use another Python, or prepare text of your own",
        )
    return files


def python_files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        yield from (Path(root, name) for name in names if name.endswith(".py"))


def copy_stdlib(target: str | Path, overwrite: bool = False) -> int:
    """Copy the sources into a new folder, in the same tree; returns how many. Whole or not at all."""
    origin = Path(sysconfig.get_path("stdlib"))
    files = stdlib_sources()
    with staged_folder(Path(target), overwrite) as partial:
        for file in files:
            place = partial / file.relative_to(origin)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    return len(files)
