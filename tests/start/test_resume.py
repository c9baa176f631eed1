"""Where a run goes on: the newest whole checkpoint, whatever happened to the newer ones; and one curve."""

import json
import logging
from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.run_folder.metrics import read_metrics_so_far, truncate_metrics
from nld_train.run_folder.paths import NEWEST_TRAIN_STATE, TRACKER, checkpoints_folder
from nld_train.start.resume import resume_step
from tests.saved import DAMAGES, save_checkpoint


def names(output: Path) -> set[str]:
    return {path.name for path in checkpoints_folder(output).iterdir() if path.is_dir()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_named_and_set_aside(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(tmp_path, 20)
    DAMAGES[damage](save_checkpoint(tmp_path, 40))
    with caplog.at_level(logging.WARNING):
        assert resume_step(tmp_path) == 20
    (line,) = caplog.messages
    assert line.startswith("iter_0000040") and line.endswith("; set aside as damaged_iter_0000040")
    assert names(tmp_path) == {"iter_0000020", "damaged_iter_0000040"}
    assert (checkpoints_folder(tmp_path) / TRACKER).read_text() == "20"
    assert (checkpoints_folder(tmp_path) / NEWEST_TRAIN_STATE).read_bytes() == (20).to_bytes(8)


def test_nothing_set_aside_is_ever_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 20)
    for _ in range(3):
        DAMAGES["empty"](save_checkpoint(tmp_path, 40))
        assert resume_step(tmp_path) == 20
    aside = {"damaged_iter_0000040", "damaged_iter_0000040.2", "damaged_iter_0000040.3"}
    assert names(tmp_path) == {"iter_0000020"} | aside


def test_several_damaged_ones_are_stepped_over(tmp_path: Path) -> None:
    for step in (20, 40, 60):
        save_checkpoint(tmp_path, step)
    DAMAGES["bit_flipped"](checkpoints_folder(tmp_path) / "iter_0000040")
    DAMAGES["no_manifest"](checkpoints_folder(tmp_path) / "iter_0000060")
    assert resume_step(tmp_path) == 20


def test_none_left_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    for step, damage in ((20, "bit_flipped"), (40, "no_manifest")):
        DAMAGES[damage](save_checkpoint(tmp_path, step))
    for _ in range(2):  # nor does the next start begin from scratch
        with pytest.raises(UserError, match="no whole checkpoint left in .*iter_0000020/__0_0.distcp is not what"):
            resume_step(tmp_path)
        assert names(tmp_path) == {"iter_0000020", "iter_0000040"}


def test_a_first_save_that_was_cut_off_is_no_loss(tmp_path: Path) -> None:
    DAMAGES["no_manifest"](save_checkpoint(tmp_path, 20))
    assert resume_step(tmp_path) is None
    assert names(tmp_path) == {"damaged_iter_0000020"}
    assert not (checkpoints_folder(tmp_path) / TRACKER).exists(), "Megatron would look for a checkpoint"
    assert not (checkpoints_folder(tmp_path) / NEWEST_TRAIN_STATE).exists()


def test_an_old_one_that_was_being_removed_does_no_harm(tmp_path: Path) -> None:
    DAMAGES["missing_file"](save_checkpoint(tmp_path, 20))
    save_checkpoint(tmp_path, 40)
    assert resume_step(tmp_path) == 40
    assert names(tmp_path) == {"iter_0000020", "iter_0000040"}


def test_the_curve_is_cut_at_the_step_resumed_at(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    entries = [{"step": 0, "kind": "validation", "AR loss": 5.0}]
    entries += [{"step": step, "kind": "train", "AR loss": 5.0} for step in (10, 20, 30)]
    entries += [{"step": 20, "kind": "validation", "AR loss": 5.0}, {"step": 30, "kind": "spike", "median": 1.0}]
    metrics.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"step": 40, "ki')
    truncate_metrics(metrics, 20)
    kept = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert kept == [entry for entry in entries if entry["step"] <= 20]
    truncate_metrics(metrics, None)
    assert metrics.read_text() == ""


def test_a_curve_that_ends_at_the_step_is_left_alone(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 10, "kind": "train", "AR loss": 5.0}\n')
    before = metrics.stat()
    truncate_metrics(metrics, 10)
    assert metrics.stat() == before
    truncate_metrics(tmp_path / "none.jsonl", 10)


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    """The first start's curve is dropped, and its emptied file is one that every reader takes."""
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"kind": "train", "step": 1, "gradient norm": 1}\n')
    truncate_metrics(metrics, None)
    assert metrics.read_text() == ""
    assert read_metrics_so_far(metrics) == []
    truncate_metrics(metrics, None)


def test_torn_lines_do_not_keep_a_run_from_going_on(tmp_path: Path, caplog) -> None:
    """A crash of a file system leaves zero bytes; a full disk leaves half a line that the next one is glued to."""
    metrics = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "kind": "train", "AR loss": 5.0}) + "\n" for step in (10, 20)]
    metrics.write_bytes((whole[0] + '{"step": 11, "ki' + whole[1]).encode() + bytes(4096) + b"\n" + whole[1].encode())
    truncate_metrics(metrics, 20)
    assert metrics.read_text() == "".join(whole)
    assert "line 2 is not JSON" in caplog.text and "2 such line(s) dropped" in caplog.text


def test_a_foreign_file_in_the_place_of_the_curve_is_not_emptied(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"epoch": 1, "loss": 2.0}\n')
    with pytest.raises(UserError, match="line 1"):
        truncate_metrics(metrics, None)
    assert metrics.read_text() == '{"epoch": 1, "loss": 2.0}\n'
