"""The torchrun of `nld train` outlives the signals that ask a run to stop."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nld_train.signals import SIGNALS

# A rank that leaves in order some time after the signals, which it does not get.
RANK = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "ready").touch()
while not (folder / "leave").exists():
    time.sleep(0.05)
(folder / "left").touch()
"""


@pytest.mark.slow
def test_it_waits_for_its_ranks_whatever_the_signal(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, "-m", "nld_train.start.torchrun_main", "--standalone", "--nproc-per-node=1"]
    agent = subprocess.Popen(
        [*command, str(tmp_path / "rank.py"), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 180
    while not (tmp_path / "ready").exists():
        assert agent.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    for number in SIGNALS:
        agent.send_signal(number)
    time.sleep(1)
    assert agent.poll() is None
    (tmp_path / "leave").touch()
    assert agent.wait(180) == 0, agent.stderr.read()[-2000:] if agent.stderr else ""
    assert (tmp_path / "left").exists()
