"""`nld generate` and `nld eval` run on the checkpoint folder that the decoders are tested with, and on a run's."""

from tests.convert.conftest import exported, random_run
from tests.decode.conftest import folder, make_model

__all__ = ["exported", "folder", "make_model", "random_run"]
