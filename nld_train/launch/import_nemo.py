"""Importing nemo-run, which reads then where its files go."""

import os
from pathlib import Path
from types import ModuleType

from nld_train.errors import UserError

HOME = "NEMORUN_HOME"  # nemo-run's variable
FOLDER = "nemo"  # in the output folder: nemo-run's experiments, scripts and logs


def with_nemo(output: Path) -> ModuleType:
    """nld_train.launch.with_nemo, with its files in a run's output folder unless the variable says where.

    Raises: UserError where nemo-run cannot be imported.
    """
    os.environ.setdefault(HOME, str((output / FOLDER).absolute()))
    try:
        from nld_train.launch import with_nemo
    except ImportError as error:
        raise UserError(f"nemo-run cannot be imported: {error}", "nemo-run 0.11", "make setup") from None
    return with_nemo
