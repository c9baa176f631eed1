"""What ends up on the terminal of a rank that fails."""

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train.train.terminal import SharedFailure, tell_failure
from tests.saved import save_checkpoint as saved_checkpoint


def told(output: Path, rank: int, error: BaseException) -> str:
    terminal = io.StringIO()
    tell_failure(terminal, str(output), rank, error)
    return terminal.getvalue()


def test_a_failure_is_one_line_and_the_log(tmp_path: Path) -> None:
    lines = told(tmp_path, 3, ValueError("first\nlast")).splitlines()
    assert lines == ["rank 3 failed: last", f"  full log: {tmp_path}/logs/rank_3.log"]


def test_what_every_rank_knows_is_told_once(tmp_path: Path) -> None:
    error = SharedFailure("step 41: gradient norm nan")
    assert told(tmp_path, 0, error).startswith("step 41: gradient norm nan\n")
    assert told(tmp_path, 1, error) == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_the_checkpoint_that_is_left(tmp_path: Path, number: int) -> None:
    error = RuntimeError("could not write")
    error.__cause__ = OSError(number, os.strerror(number))
    assert "; there is no earlier checkpoint; make room" in told(tmp_path, 0, error)
    saved_checkpoint(tmp_path, 20)
    line = told(tmp_path, 0, error).splitlines()[0]
    assert os.strerror(number) in line and "the checkpoint of step 20 is whole" in line


def save_checkpoint(error: BaseException) -> None:
    """Named as Megatron-Bridge's."""
    raise error


def raised(function: Callable[[BaseException], None]) -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        function(RuntimeError("Worker failure"))
    return caught.value


def train(error: BaseException) -> None:
    raise error


def test_a_failed_save_on_a_disk_without_room_for_another_is_a_full_disk(tmp_path: Path) -> None:
    """Megatron's writers do not hand on why they failed. The checkpoint is a sparse file, larger than what is free."""
    (shard,) = saved_checkpoint(tmp_path, 20).glob("*.distcp")
    os.truncate(shard, shutil.disk_usage(tmp_path).free * 2)
    assert "No space left on device" in told(tmp_path, 0, raised(save_checkpoint))
    assert told(tmp_path, 0, raised(train)).startswith("rank 0 failed: RuntimeError: Worker failure")
