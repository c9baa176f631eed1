"""Rows by global sample index, from real token files as the loader gets them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nld_train.data.token_file import TokenFile
from nld_train.recipe import run_to_json
from nld_train.types import NoisyRow
from tests.distributed.ranks import on, small_run, with_train

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_rank")]
EOS = 2


def build(prepared: Path, index_folder: Path, train_rows: int, *, weighted: bool = True):
    from megatron.bridge.data.base import DatasetBuildContext

    from nld_train.train.dataset import RunRowsProvider

    run = small_run("rows", prepared, alpha=0.3, init=None, parallel=on(1))
    run = with_train(run, iterations=train_rows // run.train.global_batch)
    if not weighted:
        run = replace(run, data=replace(run.data, blend=(f"{prepared}/data/a", f"{prepared}/data/b")))
    provider = RunRowsProvider(
        run_json=run_to_json(run), seq_length=64, index_folder=str(index_folder), random_seed=run.data.shuffle_seed
    )
    return provider.build_datasets(DatasetBuildContext(train_rows, 0, 0, None))


def equal(one: NoisyRow, other: NoisyRow) -> bool:
    return torch.equal(one.row.tokens, other.row.tokens) and torch.equal(one.noisy, other.noisy)


@pytest.fixture
def datasets(prepared: Path, tmp_path: Path):
    return build(prepared, tmp_path, 40)


def test_a_row_is_decided_by_its_number(datasets, prepared: Path, tmp_path: Path) -> None:
    again, _, _ = build(prepared, tmp_path / "again", 40)
    train, _, _ = datasets
    assert all(equal(train[number], again[number]) for number in (7, 0, 39, 7))
    assert not equal(train[7], train[8])


def test_rows_are_cut_from_the_files_and_keep_their_documents(datasets, prepared: Path) -> None:
    train, _, _ = datasets
    texts = [" ".join(map(str, TokenFile(prepared / "data" / name).flat)) for name in ("a", "b")]
    for number in range(12):
        row = train[number].row
        assert row.tokens.shape == (65,)
        assert row.supervised.all()
        starts = (row.documents.diff() > 0).nonzero().flatten()
        ends = (row.tokens[:-1] == EOS).nonzero().flatten()
        assert torch.equal(starts, ends[ends < 63]), "a new document starts behind every end-of-document token"
        first = row.tokens[:64][row.documents == 0]
        assert any(" ".join(map(str, first.tolist())) in text for text in texts)


def test_validation_rows_repeat_and_have_a_noise_of_their_own(datasets) -> None:
    train, valid, _ = datasets
    assert equal(valid[1], valid[9]), "8 rows are evaluated: row 9 is row 1 again"
    assert not torch.equal(train[1].masked, valid[1].masked)


def test_files_without_weights_give_rows_by_their_sizes_to_the_last_row(prepared: Path, tmp_path: Path) -> None:
    """Megatron gave each file the rows of one epoch, and the run ended amid its steps with an IndexError."""
    from nld_train.data.token_file import read_token_index

    train, _, _ = build(prepared, tmp_path, 40, weighted=False)
    per_epoch = [len(file) for file in train.token_rows.files]
    sizes = [int(read_token_index(prepared / "data" / name).lengths.sum()) for name in ("a", "b")]
    assert per_epoch[0] / sum(per_epoch) == pytest.approx(sizes[0] / sum(sizes), abs=0.05)
    rows = -(-2 * sum(per_epoch) // 8) * 8
    twice, valid, _ = build(prepared, tmp_path, rows, weighted=False)
    assert twice[rows - 1].row.index == rows - 1 and valid[7].row.index == 7


def test_a_run_that_asks_for_more_rows_than_there_are_is_an_error_before_it_trains(datasets) -> None:
    from nld_train.train.dataset import RunRows

    train, _, _ = datasets
    with pytest.raises(AssertionError, match="40 rows, 41 asked for"):
        RunRows(train.token_rows, train.objective, purpose="train", count=41, repeat_after=41)
