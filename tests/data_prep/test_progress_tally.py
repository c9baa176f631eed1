import logging

import pytest
from rich.progress import Progress

from data_prep import progress_tally
from data_prep.progress_tally import ProgressTally, show_progress


def test_off_a_terminal_a_line_is_logged_every_few_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO), show_progress(100) as tally:
        tally.add(10, documents=1, tokens=5)
        assert caplog.messages == []
        monkeypatch.setattr(progress_tally, "LOG_SECONDS", 0.0)
        tally.add(20, documents=2, tokens=1000)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("30 of 100 bytes, 3 documents, 1,005 tokens, ")


def test_the_bar_shows_the_bytes_done() -> None:
    bar = Progress(disable=True)
    tally = ProgressTally(100, bar)
    bar.add_task("", total=100, counts="")
    tally.add(40, documents=1, tokens=5)
    assert bar.tasks[0].completed == 40 and bar.tasks[0].fields["counts"].startswith("1 documents, 5 tokens")
