from pathlib import Path

import pytest

from nld_train.cli import main
from nld_train.report.history import read_stages
from nld_train.report.sampler_figures import calibration, calibration_error, sampler_section, sampler_text


def evaluation(step: int, auc: float, bands: dict[int, tuple[float, float, float]]) -> dict:
    named = {
        f"band {number} {name}": value
        for number, band in bands.items()
        for name, value in zip(("count", "said", "right"), band, strict=True)
    }
    found = {"sampler loss": 0.4, "AUC": auc, "AUC of confidence": 0.6, **named}
    return {"step": step, "kind": "validation", **found}


@pytest.fixture
def output(folder) -> Path:
    trained = {"step": 5, "kind": "train", "sampler loss": 0.5, "gradient norm": 1.0}
    bands = {1: (30, 0.05, 0.15), 10: (10, 0.95, 0.85)}
    return folder(
        "sampler",
        [evaluation(0, 0.99, bands), trained, evaluation(5, 0.9, bands), evaluation(10, 0.8, {2: (5, 0.15, 0.2)})],
    )


def test_the_best_evaluation_is_told_and_the_untrained_one_is_not_it(output: Path) -> None:
    (stage,) = read_stages([output])
    assert calibration(stage.validation[1]) == [(1, 30, 0.05, 0.15), (10, 10, 0.95, 0.85)]
    assert calibration_error(stage.validation[1]) == pytest.approx(0.1)
    assert "held-out AUC 0.900 at step 5 (its best), the confidence's 0.600; calibration error 0.100" in sampler_text(
        [stage]
    )
    page = sampler_section([stage])
    assert "step 10: 0.8000" in page and "said 0.950, right 0.850, 10 positions" in page


def test_other_runs_say_nothing(folder) -> None:
    stages = read_stages([folder("stage1_ar", [{"step": 0, "kind": "validation", "AR loss": 4.0}])])
    assert sampler_text(stages) == "" and sampler_section(stages) == ""


def test_the_command_draws_a_sampler_alone(output: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["nld", "report", str(output), "--html", str(tmp_path / "page.html")])
    assert main() == 0
    assert "held-out AUC 0.900" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "Calibration" in page and "Who sees whom" not in page
