"""Checkpoints to read share the fixtures of conversion."""

from tests.convert.conftest import copy_of, exported, random_run, saved

__all__ = ["copy_of", "exported", "random_run", "saved"]
