"""Which conversations a run uses, in which split and row; kept between starts."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nld_train import recipe
from nld_train.config import DataConfig, RunConfig
from nld_train.data.chat_packing import make_packing, open_packing, open_packings
from nld_train.data.token_file import bin_path
from nld_train.errors import UserError
from tests.chat_files import conversation, write_chat_file

BLOCK = 4
SETTINGS = DataConfig(blend=("nowhere",), tokenizer="nowhere", sequence_length=16, split="100,0,0", chat=True)


def chat_run(prefix: Path, **data: object) -> RunConfig:
    run = recipe.load_recipe(
        "tiny_stage2_joint", ["diffusion.document_mask=true", f"data.blend={prefix}", "data.chat=true"]
    )
    return replace(run, data=replace(run.data, **data))


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    """Conversations of 10, 16, 20 and 40 tokens; the answer of the longest starts behind token 16."""
    shapes = [(10, 4), (16, 6), (20, 8), (40, 30)]
    return write_chat_file(tmp_path / "chat", [conversation(n, prompt=p, seed=i) for i, (n, p) in enumerate(shapes)])


def test_longer_ones_are_cut_unless_no_answer_is_left(chat_file: Path) -> None:
    plan = make_packing(str(chat_file), SETTINGS, BLOCK)["train"]
    assert sorted(plan.rows.documents.tolist()) == [0, 1, 2]
    counts = plan.counts
    assert (counts.conversations, counts.tokens, counts.rows, counts.cut, counts.dropped) == (3, 42, 3, 1, 1)


def test_longer_ones_are_left_out_by_option(chat_file: Path) -> None:
    plan = make_packing(str(chat_file), replace(SETTINGS, long_conversations="drop"), BLOCK)["train"]
    assert sorted(plan.rows.documents.tolist()) == [0, 1]
    assert (plan.counts.cut, plan.counts.dropped) == (0, 2)


def test_splits_share_out_the_conversations(tmp_path: Path) -> None:
    file = write_chat_file(tmp_path / "chat", [conversation(5, prompt=2, seed=i) for i in range(200)])
    plan = make_packing(str(file), replace(SETTINGS, split="80,15,5"), BLOCK)
    train, validation = (set(plan[name].rows.documents.tolist()) for name in ("train", "validation"))
    assert (len(train), len(validation)) == (160, 30)
    assert not train & validation
    assert validation & set(range(100)) and validation & set(range(100, 200)), "drawn from the whole file"
    other_rows = make_packing(str(file), replace(SETTINGS, split="80,15,5", sequence_length=8, shuffle_seed=5), BLOCK)
    assert set(other_rows["validation"].rows.documents.tolist()) == validation


def test_a_plan_is_made_once_and_read_back(chat_file: Path, tmp_path: Path) -> None:
    made = make_packing(str(chat_file), SETTINGS, BLOCK)["train"]
    first = open_packing(str(chat_file), SETTINGS, BLOCK, tmp_path / "index")["train"]
    (folder,) = (tmp_path / "index").iterdir()
    before = folder.stat().st_ino
    again = open_packing(str(chat_file), SETTINGS, BLOCK, tmp_path / "index")["train"]
    assert [path.stat().st_ino for path in (tmp_path / "index").iterdir()] == [before]
    for plan in (first, again):
        assert np.array_equal(plan.rows.documents, made.rows.documents)
        assert np.array_equal(plan.rows.starts, made.rows.starts)
        assert plan.counts == made.counts


@pytest.mark.parametrize("change", [{"sequence_length": 20}, {"long_conversations": "drop"}, {"split": "50,50,0"}])
def test_other_settings_are_another_plan(chat_file: Path, tmp_path: Path, change: dict) -> None:
    for data in (SETTINGS, replace(SETTINGS, **change)):
        open_packing(str(chat_file), data, BLOCK, tmp_path / "index")
    assert len(list((tmp_path / "index").iterdir())) == 2


def test_another_file_of_the_same_name_is_another_plan(chat_file: Path, tmp_path: Path) -> None:
    open_packing(str(chat_file), SETTINGS, BLOCK, tmp_path / "index")
    write_chat_file(chat_file, [conversation(9, prompt=3, seed=1)])
    plan = open_packing(str(chat_file), SETTINGS, BLOCK, tmp_path / "index")
    assert plan["train"].counts.conversations == 1


def test_a_plan_that_fails_leaves_nothing(chat_file: Path, tmp_path: Path) -> None:
    Path(f"{chat_file}.supervised.bin").unlink()
    with pytest.raises(UserError, match="supervised"):
        open_packing(str(chat_file), SETTINGS, BLOCK, tmp_path / "index")
    assert not (tmp_path / "index").exists() or not list((tmp_path / "index").iterdir())
    assert bin_path(chat_file).exists()


def test_a_run_without_validation_conversations_is_refused(chat_file: Path, tmp_path: Path) -> None:
    run = chat_run(chat_file, sequence_length=16, split="100,0,0")
    with pytest.raises(UserError, match="no conversation for validation"):
        open_packings(run, tmp_path / "index")
    open_packings(replace(run, train=replace(run.train, eval_batches=0)), tmp_path / "index")


def test_what_was_packed_is_told(chat_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = chat_run(chat_file, sequence_length=16, split="100,0,0")
    with caplog.at_level(logging.INFO):
        open_packings(replace(run, train=replace(run.train, eval_batches=0)), tmp_path / "index")
    # 42 tokens in 3 rows of 16; in blocks of 16 the 10 tokens of the first leave 6 of 48 places empty.
    assert "3 conversations in 3 rows of 16, 87.50% full; 1 cut at a row's length, 1 left out" in caplog.text
    assert "would cost 12.5%" in caplog.text
