import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.recipe import load_recipe, run_to_json


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str, Sequence[dict]], Path]:
    """Makes the output folder of a tiny run, with these lines in metrics.jsonl."""

    def make(stage: str, entries: Sequence[dict]) -> Path:
        output = tmp_path / stage
        output.mkdir()
        run = load_recipe(f"tiny_{stage}", ["train.global_batch=16"])
        init = None if run.init is None else str(tmp_path / Path(run.init).name)
        (output / "run.json").write_text(run_to_json(replace(run, output=str(output), init=init)))
        (output / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return output

    return make
