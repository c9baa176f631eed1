"""Asks fake ranks: processes that are one rank of a large run, with all its process groups and nobody behind them.

They are forks of one process (`rank_process.py`), which is started here and told by files of JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nld_train.config import RunConfig
from nld_train.plan.memory import worst_stage
from nld_train.recipe import run_to_json

QUESTIONS, ANSWER = "questions.json", "answer{}.json"


class RankQuestion(NamedTuple):
    """What is asked of one rank of a run: its peak of memory, which rows and weights are its share, or what it
    sends in a step."""

    run: RunConfig
    rank: int
    kind: Literal["memory", "share", "traffic"]


def ask_ranks(questions: Sequence[RankQuestion]) -> list[Any]:
    """The answers, one after another: `rank_memory.simulate_peak`, `rank_share.find_share` or
    `rank_traffic.count_traffic`. The import takes 20 s."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        asked = [(run_to_json(each.run), each.rank, each.kind) for each in questions]
        (folder / QUESTIONS).write_text(json.dumps(asked), encoding="utf-8")
        # No GPU: a fake rank beside a real device would find one.
        quiet = {**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "nld_train.rehearsal.rank_process", place]
        done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"a fake rank failed:\n{done.stderr[-4000:]}")
        return [
            json.loads((folder / ANSWER.format(number)).read_text(encoding="utf-8")) for number in range(len(asked))
        ]


def fullest_rank(run: RunConfig) -> int:
    """The first rank of the pipeline stage that needs most memory by the plan."""
    return worst_stage(run).stage * (run.parallel.world_size // run.parallel.pipeline)
