import json
from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.report.history import StageLosses, read_stage, stage_losses
from nld_train.run_folder.metrics import read_metrics
from nld_train.run_folder.paths import METRICS


def validation(step: int, **values: float) -> dict:
    return {"step": step, "kind": "validation", **{name.replace("_", " "): value for name, value in values.items()}}


def train(step: int, loss: float, rate: float = 1000.0) -> dict:
    return {"step": step, "kind": "train", "AR loss": loss, "tokens/s": rate}


def test_the_losses_of_a_stage_are_its_first_and_last_validation(folder) -> None:
    entries = [
        validation(0, AR_loss=7.0, diffusion_loss=9.0),
        train(5, 1.0),
        validation(5, AR_loss=6.0, diffusion_loss=8.0),
        validation(10, AR_loss=5.5, diffusion_loss=7.25),
    ]
    found = stage_losses(read_stage(folder("stage2_joint", entries)))
    assert found == StageLosses(7.0, 5.5, 9.0, 7.25)
    assert found.diffusion_drop == 1.75
    assert found.gain(6.5) == 1.0


def test_what_was_never_measured_is_none(folder) -> None:
    found = stage_losses(read_stage(folder("stage1_ar", [train(5, 1.0)])))
    assert found == StageLosses(None, None, None, None)
    assert found.gain(6.0) is None and found.diffusion_drop is None
    assert StageLosses(7.0, 5.0, None, None).gain(None) is None


def test_of_a_step_that_a_resumed_run_repeats_the_last_entry_counts(folder) -> None:
    before = [train(5, 5.0), train(10, 4.0), validation(10, AR_loss=4.5), train(15, 99.0)]
    after = [train(10, 4.25), validation(10, AR_loss=4.75), train(15, 3.0)]
    stage = read_stage(folder("stage1_ar", before + after))
    assert [(entry["step"], entry["AR loss"]) for entry in stage.train] == [(5, 5.0), (10, 4.25), (15, 3.0)]
    assert [entry["AR loss"] for entry in stage.validation] == [4.75]


def test_steps_tokens_and_rate_of_a_stage(folder) -> None:
    stage = read_stage(folder("stage1_ar", [train(5, 1.0, 10.0), train(10, 1.0, 500.0), train(15, 1.0, 600.0)]))
    assert stage.steps == 15
    assert stage.tokens == 15 * stage.run.train.global_batch * stage.run.data.sequence_length
    assert stage.tokens_per_second == 500.0


def test_a_stage_that_was_only_evaluated_has_no_rate(folder) -> None:
    stage = read_stage(folder("stage1_ar", [validation(0, AR_loss=7.0)]))
    assert (stage.steps, stage.tokens, stage.tokens_per_second) == (0, 0, None)


def test_values_that_are_not_finite_can_be_read(folder) -> None:
    output = folder("stage1_ar", [train(5, 1.0) | {"gradient norm": float("nan")}])
    assert read_stage(output).train[0]["gradient norm"] != read_stage(output).train[0]["gradient norm"]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_metrics_are_refused(tmp_path: Path, content) -> None:
    (tmp_path / METRICS).write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl is empty"):
        read_metrics(tmp_path / METRICS)


def test_a_folder_without_metrics_or_configuration_is_refused(tmp_path: Path, folder) -> None:
    with pytest.raises(UserError, match=r"no run\.json"):
        read_stage(tmp_path)
    output = folder("stage1_ar", [train(5, 1.0)])
    (output / METRICS).unlink()
    with pytest.raises(UserError, match=r"no file .*metrics\.jsonl"):
        read_stage(output)


@pytest.mark.parametrize(
    "line",
    ['{"step": 5, "ki', "7", '{"step": 5}', '{"kind": "train"}', '{"kind": "test", "step": 5}']
    + [json.dumps({"kind": "train", "step": 5, "AR loss": "low"})],
)
def test_a_broken_line_is_named_and_left_out(tmp_path: Path, line, caplog) -> None:
    (tmp_path / METRICS).write_text(json.dumps(train(5, 1.0)) + "\n" + line + "\n" + json.dumps(train(6, 1.0)) + "\n")
    assert [entry["step"] for entry in read_metrics(tmp_path / METRICS)] == [5, 6]
    assert "metrics.jsonl line 2" in caplog.text and "1 such line(s) left out" in caplog.text


def test_a_file_of_other_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"event": "start"}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 1"):
        read_metrics(tmp_path / METRICS)
