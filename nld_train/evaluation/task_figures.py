"""The figures of `nld eval tasks`, from its records alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from nld_train.errors import require
from nld_train.evaluation.record_file import Record
from nld_train.report.columns import align_columns, number_text

SCORED = "scores "  # how the key of a record of scores begins; the other records are answers
ERROR = "_stderr"  # lm-eval's name for the standard error of METRIC,FILTER is METRIC_stderr,FILTER


def task_figures(identity: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Every figure of every task in every mode, with tokens per forward: generated tokens / all forwards, the prefill
    counted; null where nothing is generated. Raises: UserError where no task is finished."""
    scores = [score for record in records if record["key"].startswith(SCORED) for score in _scores(record)]
    require(len(scores) > 0, "no finished task", "one or more", "give the same command again")
    return {"kind": "tasks", "identity": dict(identity), "scores": scores}


def _scores(record: Record) -> list[dict[str, Any]]:
    speed = record["tokens"] / record["forwards"] if record["forwards"] else None
    found = []
    for task, metrics in record["results"].items():
        for name, value in metrics.items():
            metric, _, rule = name.partition(",")
            if not rule or metric.endswith(ERROR):
                continue
            found.append(
                {
                    "task": task,
                    "mode": record["mode"],
                    "figure": metric if rule == "none" else f"{metric}, {rule}",
                    "value": value,
                    "standard_error": metrics.get(f"{metric}{ERROR},{rule}"),
                    "documents": record["documents"].get(task),
                    "tokens": record["tokens"],
                    "forwards": record["forwards"],
                    "tokens_per_forward": speed,
                }
            )
    return found


def tasks_table(figures: Mapping[str, Any]) -> str:
    """The figures as people read them."""
    rows = [("task", "mode", "figure", "value", "error", "tokens/forward")]
    for score in figures["scores"]:
        numbers = (score["value"], score["standard_error"], score["tokens_per_forward"])
        value, error, speed = (number_text(number, ".4f") for number in numbers)
        rows.append((score["task"], score["mode"], score["figure"], value, error, speed))
    return align_columns(rows, left=3)
