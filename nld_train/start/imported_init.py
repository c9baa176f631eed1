"""A run that starts from a Hugging Face folder imports it into its own output folder first."""

import logging
from dataclasses import replace
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.convert.actions import import_folder
from nld_train.doctor.start_checks import check_init_shape
from nld_train.run_folder.checkpoints import checkpoint_steps
from nld_train.run_folder.paths import IMPORTED, is_hf_folder

logger = logging.getLogger(__name__)


def with_imported_init(run: RunConfig) -> RunConfig:
    """The run with OUTPUT/init in the place of an `init` that is a Hugging Face folder; any other run unchanged.

    A fresh run imports the folder and replaces what an earlier try left there; a resumed run has its weights already.
    Raises: UserError where the folder holds another model, or cannot be read.
    """
    if run.init is None or not is_hf_folder(Path(run.init)):
        return run
    output = Path(run.output)
    target = output / IMPORTED
    if not checkpoint_steps(output):
        check_init_shape(run)
        logger.info("importing %s into %s", run.init, target)
        text_only = run.vision is None
        import_folder(Path(run.init), target, None, verified=True, overwrite=True, text_only=text_only)
    return replace(run, init=str(target))
