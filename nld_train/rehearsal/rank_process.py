"""The process behind `fake_ranks.ask_ranks`: `python -m nld_train.rehearsal.rank_process FOLDER`.

It imports Megatron once, and forks for every question: a fake rank leaves nothing of its process as it was.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nld_train.exit_status import FAILED, FINISHED
from nld_train.files import write_text
from nld_train.recipe import run_from_json
from nld_train.rehearsal.fake_ranks import ANSWER, QUESTIONS


def main() -> int:
    """Answer every question in turn. Returns: the exit status."""
    folder = Path(sys.argv[1])
    _import_megatron()
    for number, question in enumerate(json.loads((folder / QUESTIONS).read_text(encoding="utf-8"))):
        child = os.fork()
        if child == 0:
            return _answer(question, folder / ANSWER.format(number))
        _, status = os.waitpid(child, 0)
        if status:
            return FAILED
    return FINISHED


def _import_megatron() -> None:
    """As a run does on a CPU, whose optimizer stands for the fused one."""
    from nld_train.train import patches
    from nld_train.train.megatron_import import imports_without_collections, load_megatron

    patches.leave_wandb_out()
    load_megatron()
    with imports_without_collections():
        # What every fork would import for itself otherwise, for seconds each.
        import megatron.bridge.data.samplers  # noqa: F401
        import torch._dynamo  # noqa: F401

        import nld_train.rehearsal.rank_memory
        import nld_train.rehearsal.rank_share
        import nld_train.rehearsal.rank_traffic
        import nld_train.train.forward_step  # noqa: F401


def _answer(question: Sequence[Any], path: Path) -> int:
    """Write the answer of one rank. Returns: the exit status of this process."""
    from nld_train.rehearsal.rank_memory import simulate_peak
    from nld_train.rehearsal.rank_share import find_share
    from nld_train.rehearsal.rank_traffic import count_traffic

    text, rank, kind = question
    answers = {"memory": simulate_peak, "share": find_share, "traffic": count_traffic}
    write_text(path, json.dumps(answers[kind](run_from_json(text), rank)))
    return FINISHED


if __name__ == "__main__":
    sys.exit(main())
