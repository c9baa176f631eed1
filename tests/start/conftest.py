"""Starts from exported folders share the fixtures of conversion."""

from tests.convert.conftest import copy_of, exported, random_run

__all__ = ["copy_of", "exported", "random_run"]
