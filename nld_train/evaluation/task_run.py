"""Runs lm-eval's tasks on a model, one task in one mode at a time."""

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from nld_train.errors import UserError, require
from nld_train.evaluation.lm_eval_model import NldLM
from nld_train.evaluation.record_file import RecordFile
from nld_train.evaluation.task_figures import SCORED

OWN_TASKS = Path(__file__).with_name("tasks")
BOOTSTRAPS = 1000  # of standard errors that have no formula


@dataclass(frozen=True)
class TaskLimits:
    """How much of a task is asked."""

    documents: int | None = None  # of each task, at most; None: all
    shots: int | None = None  # examples before each request; None: as the task says


def open_tasks(names: Sequence[str], folder: Path | None) -> TaskManager:
    """lm-eval's tasks, ours, and those of a folder. Raises: UserError for a name that none has."""
    require(folder is None or folder.is_dir(), f"no folder {folder}", "a folder of task files", "check --tasks-folder")
    paths = [OWN_TASKS] if folder is None else [OWN_TASKS, folder]
    small = TaskManager(include_path=paths, include_defaults=False)
    # To read the names of all of lm-eval's tasks takes seconds.
    manager = small if set(names) <= set(small.all_tasks) else TaskManager(include_path=paths)
    for name in names:
        if name not in manager.all_tasks:
            near = ", ".join(difflib.get_close_matches(name, manager.all_tasks, 3)) or "those that `lm-eval ls` shows"
            raise UserError(f"no task {name}", f"{', '.join(small.all_tasks)}, and lm-eval's", f"did you mean {near}?")
    return manager


def score_task(model: NldLM, manager: TaskManager, name: str, limits: TaskLimits, records: RecordFile) -> None:
    """Ask all requests of a task, and record its scores unless they are recorded. Raises: UserError."""
    mode = model.decoding.mode
    key = f"{SCORED}{mode} {name}"
    if key in records.records:
        return
    model.used.clear()
    for logger in ("lm_eval", "datasets"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        found = simple_evaluate(
            model,
            tasks=[name],
            task_manager=manager,
            limit=limits.documents,
            num_fewshot=limits.shots,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=False,
        )
    except OSError as error:  # the data of a task is neither here nor to be had
        text = " ".join(str(error).split())[:200]
        do = "connect to the network once, or take nld_cloze and nld_arithmetic"
        raise UserError(f"task {name}: {type(error).__name__}: {text}", "a task whose data is here", do) from error
    answers = [record for record in model.used if "forwards" in record]
    records.append(
        {
            "key": key,
            "mode": mode,
            "results": {task: _numbers(metrics) for task, metrics in found["results"].items()},
            "documents": {task: counts["effective"] for task, counts in found["n-samples"].items()},
            "tokens": sum(record["tokens"] for record in answers),
            "forwards": sum(record["forwards"] for record in answers),
        }
    )


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures of a task; what else lm-eval notes there is text."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "," in name
    }
