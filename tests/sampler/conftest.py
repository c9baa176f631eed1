"""The tiny random model of the decoding tests, and a folder of it."""

from tests.decode.conftest import MASK, folder, make_model, ragged, small

__all__ = ["MASK", "folder", "make_model", "ragged", "small"]
