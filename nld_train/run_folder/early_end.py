"""OUTPUT/early_end.json: a run that was finished before its last step, because its evaluations got no better."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from nld_train.errors import require
from nld_train.files import write_text
from nld_train.json_file import read_json_object
from nld_train.run_folder.metrics import Entry
from nld_train.run_folder.paths import EARLY_END


def record_early_end(output: Path, step: int, best: int, figure: str) -> None:
    """Record that a run is finished at `step`, its best evaluation at the step `best`."""
    write_text(output / EARLY_END, json.dumps({"step": step, "best step": best, "figure": figure}) + "\n")


def early_end_step(output: Path) -> int | None:
    """The step at which a run was finished early; None: it was not. Raises: UserError."""
    path = output / EARLY_END
    if not path.is_file():
        return None
    step = read_json_object(path, "the record of a run's early end").get("step")
    require(isinstance(step, int), f"{path} names no step", "the file as the run wrote it", "take it away")
    assert isinstance(step, int)
    return step


def forget_early_end(output: Path, step: int | None) -> None:
    """Take the record away where the run goes on from an earlier step (None: from the start)."""
    ended = early_end_step(output)
    if ended is not None and (step is None or step < ended):
        (output / EARLY_END).unlink()


def best_evaluation(evaluated: Sequence[Entry], name: str) -> Entry:
    """The evaluation behind step 0 with the largest figure, of equals the first; one before the first step where there
    is no other. Of figures that are no number none is better."""
    trained = [entry for entry in evaluated if entry["step"] > 0] or list(evaluated)
    return max(trained, key=lambda entry: -math.inf if math.isnan(entry[name]) else entry[name])
