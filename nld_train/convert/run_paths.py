"""Paths that a run's configuration names, found from the run's folder rather than from where one stands."""

import os
from pathlib import Path

from nld_train.config import RunConfig


def locate_named_path(output: Path, run: RunConfig, named: str) -> Path:
    """The path that `run`, whose output folder is now `output`, calls `named`.

    A relative path was meant from the folder that the run was started in. Where the run's own output was named from
    there too, that folder is known from where the output lies; otherwise, and where nothing lies at that place, the
    path is taken from the working directory.
    """
    own, path = Path(run.output), Path(named)
    if path.is_absolute() or own.is_absolute():
        return path
    found = Path(os.path.normpath(output.resolve() / os.path.relpath(path, own)))
    return found if found.exists() else path
