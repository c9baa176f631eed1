"""Phases are told, with their seconds where they ended well."""

import logging
import re

import pytest

from nld_train.convert.phases import timed_phase


def test_a_phase_is_told_at_both_ends(caplog) -> None:
    with caplog.at_level(logging.INFO), timed_phase("writing"):
        pass
    assert re.fullmatch(r"writing \.\.\. writing: \d+\.\d s", " ".join(caplog.messages))


def test_a_phase_that_failed_is_not_told_as_done(caplog) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(ValueError), timed_phase("writing"):
        raise ValueError
    assert caplog.messages == ["writing ..."]
