import math
from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.run_folder.early_end import best_evaluation, early_end_step, forget_early_end, record_early_end


def test_a_record_is_read_and_forgotten_where_the_run_goes_on_before_it(tmp_path: Path) -> None:
    assert early_end_step(tmp_path) is None
    forget_early_end(tmp_path, None)
    record_early_end(tmp_path, 40, 20, "AUC 0.9")
    forget_early_end(tmp_path, 40)
    assert early_end_step(tmp_path) == 40
    forget_early_end(tmp_path, 30)
    assert early_end_step(tmp_path) is None


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "early_end.json").write_text("{}")
    with pytest.raises(UserError, match="names no step"):
        early_end_step(tmp_path)


def test_the_best_evaluation_is_a_trained_one_and_a_number() -> None:
    values = [(0, 0.99), (10, 0.7), (20, math.nan), (30, 0.8), (40, 0.8)]
    entries = [{"step": step, "AUC": value} for step, value in values]
    assert best_evaluation(entries, "AUC")["step"] == 30
    assert best_evaluation(entries[:1], "AUC")["step"] == 0
