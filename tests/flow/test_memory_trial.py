"""A run whose largest batch does not fit ends in one line before its first step, with the real `nld train`."""

import resource
from pathlib import Path

import pytest

from nld_train.exit_status import REFUSED
from nld_train.run_folder.attempts import read_attempts
from nld_train.run_folder.refusal import read_refusal
from tests.flow.started import Started

pytestmark = pytest.mark.megatron
ADDRESSES = 48 << 30  # bytes that the run may map; the queries, keys and values of a layer would take more
LARGE = ["train.micro_batch=2048", "train.global_batch=2048", "model.head_dim=16384"]


def test_memory_fails_before_the_first_step_and_says_what_to_change(prepared: Path, tmp_path: Path) -> None:
    settings = ["--nproc", "1", "train.eval_batches=0", "train.iterations=4", "train.memory_trial=always", *LARGE]
    run = Started(prepared, tmp_path / "run", *settings)
    resource.prlimit(run.process.pid, resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    assert run.end() == REFUSED, run.said[-3000:]
    (line,) = [line for line in run.said.splitlines() if "out of memory" in line]
    assert line.startswith("rank 0: out of memory on the largest batch, train.micro_batch=2048 rows of 64 tokens")
    assert "can't allocate memory" in line or "not enough memory" in line
    assert "do: try one of train.micro_batch=1024, parallel.recompute=selective, parallel.recompute=full" in line
    assert "Traceback" not in run.said and "step 1/" not in run.said
    assert f"rank 0: {read_refusal(run.output)}" == line
    assert [attempt.status for attempt in read_attempts(run.output)] == [REFUSED]
