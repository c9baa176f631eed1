"""Importing nemo-run, which reads then where its files go."""

import os
from pathlib import Path
from types import ModuleType

from nld_train.errors import UserError
from nld_train.run_folder.paths import NEMO

HOME = "NEMORUN_HOME"  # nemo-run's variable


def import_nemo_experiment(output: Path) -> ModuleType:
    """nld_train.launch.nemo_experiment, with its files in a run's output folder unless the variable says where.

    Raises: UserError where nemo-run cannot be imported.
    """
    os.environ.setdefault(HOME, str((output / NEMO).absolute()))
    try:
        from nld_train.launch import nemo_experiment
    except ImportError as error:
        raise UserError(f"nemo-run cannot be imported: {error}", "nemo-run 0.11", "make setup") from None
    return nemo_experiment
