"""`nld generate` runs on the checkpoint folder that the decoders are tested with."""

from tests.decode.conftest import folder, make_model

__all__ = ["folder", "make_model"]
