"""Where nemo-run keeps its files: it reads that from a variable when it is imported."""

import os
from importlib import import_module
from pathlib import Path

from nld_train.errors import UserError
from nld_train.run_folder.paths import NEMO

HOME = "NEMORUN_HOME"  # nemo-run's variable


def prepare_nemo_run(output: Path) -> None:
    """Have nemo-run keep its files in a run's output folder unless the variable says where, and import nemo-run.

    It reads the variable when it is first imported, so this comes before nld_train.launch.nemo_experiment is.
    Raises: UserError where nemo-run cannot be imported.
    """
    os.environ.setdefault(HOME, str((output / NEMO).absolute()))
    try:
        import_module("nemo_run")
    except ImportError as error:
        raise UserError(f"nemo-run cannot be imported: {error}", "nemo-run 0.11", "make setup") from None
