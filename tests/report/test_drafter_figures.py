import json
from html import escape
from pathlib import Path

import pytest

from nld_train.cli import main
from nld_train.report.drafter_figures import drafter_section, drafter_text, first_and_last_drafts
from nld_train.report.history import read_stages


def evaluation(step: int, kept: list[float]) -> dict:
    shares = {f"drafts kept up to {place}": share for place, share in enumerate(kept, start=1)}
    loss = 3.0 - step / 10
    return {"step": step, "kind": "validation", "drafter loss": loss, "accepted length": 1 + sum(kept), **shares}


@pytest.fixture
def output(folder) -> Path:
    trained = {"step": 5, "kind": "train", "drafter loss": 3.0, "accepted length": 9.0, "gradient norm": 1.0}
    return folder(
        "drafter", [evaluation(0, [0.4, 0.1]), trained, evaluation(5, [0.5, 0.2]), evaluation(10, [0.6, 0.3])]
    )


def test_the_first_and_the_last_evaluation_are_compared(output: Path) -> None:
    (stage,) = read_stages([output])
    before, after = first_and_last_drafts(stage)
    assert (before.accepted, after.accepted) == pytest.approx((1.5, 1.9))
    assert after.tokens_per_forward == pytest.approx(0.95)
    assert (before.kept, after.kept) == ([0.4, 0.1], [0.6, 0.3])
    shown = drafter_text([stage])
    assert "accepted length 1.500 -> 1.900 (+26.7 %), tokens per forward 0.750 -> 0.950" in shown
    assert "before   0.400  0.100" in shown


def test_the_loss_that_was_chosen_is_named_with_its_own_figures(folder) -> None:
    expected = {"expected length": 1.25}
    entries = [evaluation(0, [0.4, 0.1]) | expected, evaluation(10, [0.6, 0.3]) | {"expected length": 1.5}]
    output = folder("drafter", entries)
    tree = json.loads((output / "run.json").read_text())
    tree["drafter"]["loss"] = "accepted_length"
    (output / "run.json").write_text(json.dumps(tree))
    said = "trained by drafter.loss=accepted_length: drafter loss 3.000 -> 2.000, expected length 1.250 -> 1.500"
    stages = read_stages([output])
    assert f"\n{said}\n" in drafter_text(stages) and f"<p>{escape(said)}</p>" in drafter_section(stages)


def test_an_older_versions_metrics_have_no_expected_length(output: Path) -> None:
    shown = drafter_text(read_stages([output]))
    assert "trained by drafter.loss=lk_hybrid: drafter loss 3.000 -> 2.000\n" in shown


def test_places_are_in_the_order_of_their_numbers(folder) -> None:
    kept = [1 - place / 20 for place in range(12)]
    (stage,) = read_stages([folder("drafter", [evaluation(0, kept)])])
    assert first_and_last_drafts(stage)[0].kept == kept


def test_a_joint_stage_shows_the_curve_of_its_own_drafts(folder) -> None:
    """Beside the losses: a run without a drafter, whose evaluations drafted a few rows."""
    losses = {"AR loss": 4.0, "diffusion loss": 5.0, "tokens per forward": 0.9}
    entries = [evaluation(step, kept) | losses for step, kept in ((0, [0.2, 0.0]), (70, [0.5, 0.25]))]
    stages = read_stages([folder("stage2_joint", entries)])
    assert "tiny_stage2_joint: accepted length 1.200 -> 1.750 (+45.8 %), tokens per forward 0.600 -> 0.875" in (
        drafter_text(stages)
    )
    page = drafter_section(stages)
    assert "drafter.loss" not in drafter_text(stages)
    assert "step 70: 1.750" in page and "place 2: 0.250" in page and "prefill is not counted" in page


def test_runs_that_never_drafted_say_nothing(folder) -> None:
    stages = read_stages([folder("stage1_ar", [{"step": 0, "kind": "validation", "AR loss": 4.0}])])
    assert first_and_last_drafts(stages[0]) is None
    assert drafter_text(stages) == "" and drafter_section(stages) == ""


def test_the_command_prints_and_draws_a_drafter_alone(output: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["nld", "report", str(output), "--html", str(tmp_path / "page.html")])
    assert main() == 0
    assert "accepted length 1.500 -> 1.900" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "<h2>Drafts of self-speculation</h2>" in page and "step 10: 1.900" in page and "place 2: 0.300" in page
