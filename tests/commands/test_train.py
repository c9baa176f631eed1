"""`nld train --help` names every exit status of a run."""

import re

from nld_train.commands.train import TRAIN_HELP
from nld_train.exit_status import FAILED, MEANING


def test_the_help_lists_every_exit_status() -> None:
    listed = re.findall(r"^  (\d+) +\S", TRAIN_HELP.partition("Exit status:")[2], flags=re.MULTILINE)
    assert sorted(map(int, listed)) == sorted([*MEANING, FAILED])
