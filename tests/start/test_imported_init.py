"""A run that starts from a Hugging Face folder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nld_train.config import RunConfig
from nld_train.convert.source import open_checkpoint_source
from nld_train.convert.weight_table import NLD, weight_mappings
from nld_train.doctor.start_checks import check_init
from nld_train.errors import UserError
from nld_train.start.imported_init import with_imported_init
from tests.distributed.ranks import on, small_run


@pytest.fixture
def run(exported: Path, tmp_path: Path) -> RunConfig:
    return replace(small_run("sft", tmp_path, alpha=0.3, init=None, parallel=on(1)), init=str(exported))


def test_a_hugging_face_folder_becomes_a_start(run: RunConfig, random_run: Path) -> None:
    started = with_imported_init(run)
    assert started == replace(run, init=f"{run.output}/init")
    check_init(started)
    theirs, ours = open_checkpoint_source(random_run), open_checkpoint_source(Path(started.init))
    for unit in weight_mappings(ours.model, NLD):
        weights = [source.weights.read(unit, torch.float32) for source in (theirs, ours)]
        assert torch.equal(*weights)


def test_other_starts_stay_as_they_are(run: RunConfig, random_run: Path) -> None:
    for init in (None, str(random_run), "nowhere"):
        other = replace(run, init=init)
        assert with_imported_init(other) is other


def test_a_fresh_start_imports_again_and_a_resume_does_not(run: RunConfig) -> None:
    mark = Path(run.output) / "init" / "import.json"
    with_imported_init(run)
    first = mark.stat().st_ino
    with_imported_init(run)
    second = mark.stat().st_ino
    assert second != first
    (Path(run.output) / "checkpoints" / "iter_0000002").mkdir(parents=True)
    assert with_imported_init(run).init == f"{run.output}/init"
    assert mark.stat().st_ino == second


def test_a_folder_of_another_shape_is_refused_before_it_is_read(run: RunConfig) -> None:
    other = replace(run, model=replace(run.model, layers=8))
    with pytest.raises(UserError, match="layers=4 there, 8 here"):
        with_imported_init(other)
    assert not Path(run.output).exists()


def test_a_run_on_text_starts_without_the_tower_of_a_folder_that_has_one(
    run: RunConfig, exported: Path, prepared: Path, tmp_path: Path
) -> None:
    from nld_train.convert.merge_vision import merge_vision
    from nld_train.run_folder.frozen import read_frozen_vision
    from tests.convert.conftest import export
    from tests.vision_folder import save_ministral, stock_ministral

    tower = save_ministral(stock_ministral(), prepared / "tokenizer", tmp_path / "ministral")
    merge_vision(exported, tower, tmp_path / "merged", "<SPECIAL_20>,<SPECIAL_21>,<SPECIAL_22>", overwrite=False)
    folder = export(tmp_path / "merged", tmp_path / "hf", dtype=torch.float32)
    started = with_imported_init(replace(run, init=str(folder)))
    assert started.init == f"{run.output}/init" and read_frozen_vision(Path(started.init)) is None
    check_init(started)
