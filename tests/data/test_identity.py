"""Data made again under the same name is other data."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.config import RunConfig
from nld_train.data.identity import check_data_identity, file_identity, record_data_identity
from nld_train.data.manifest import read_manifest
from nld_train.doctor.start_checks import check_start
from nld_train.errors import UserError
from nld_train.run_folder.frozen import freeze_run
from nld_train.start.output_folder import open_output
from tests.chat_files import conversation, write_chat_file
from tests.distributed.ranks import on, small_run
from tests.saved import save_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """A run with a checkpoint at step 2, on a chat file."""
    write_chat_file(tmp_path / "chat", [conversation(9, prompt=3, seed=seed) for seed in range(4)])
    run = small_run("run", tmp_path, alpha=0.0, init=None, parallel=on(1))
    run = replace(run, data=replace(run.data, blend=(f"{tmp_path}/chat",)))
    Path(run.output).mkdir()
    freeze_run(run)
    save_checkpoint(run.output, 2)
    return run


def make_again(run: RunConfig) -> None:
    write_chat_file(Path(run.data.blend[0]), [conversation(9, prompt=3, seed=seed) for seed in range(4, 8)])


def test_the_same_data_is_resumed(run: RunConfig) -> None:
    record_data_identity(run, resumes=False)
    check_start(run)
    assert open_output(run) == 2


def test_data_made_again_is_refused_by_its_name(run: RunConfig) -> None:
    record_data_identity(run, resumes=False)
    make_again(run)
    named = re.escape(run.data.blend[0])
    for check in (check_start, open_output):
        with pytest.raises(UserError, match=f"{named} holds other data than"):
            check(run)


def test_other_supervision_of_the_same_tokens_is_other_data(run: RunConfig, tmp_path: Path) -> None:
    before = read_manifest(run.data.blend[0])
    one = file_identity(run.data.blend[0])
    write_chat_file(tmp_path / "chat", [conversation(9, prompt=4, seed=seed) for seed in range(4)])
    assert read_manifest(run.data.blend[0]).bin_sha256 == before.bin_sha256
    assert file_identity(run.data.blend[0]) != one


def test_a_folder_from_before_says_so_once(run: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    check_start(run)
    with caplog.at_level(logging.WARNING):
        record_data_identity(run, resumes=True)
        assert "does not say which data the run began with" in caplog.text
        caplog.clear()
        record_data_identity(run, resumes=True)
    assert not caplog.text
    make_again(run)
    with pytest.raises(UserError, match="holds other data"):
        check_start(run)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ('{"files": 3, "row order": 1}', "does not say which data"),
        (json.dumps({"row order": 0, "files": {}}), "has the rows in order 0"),
    ],
)
def test_a_record_that_cannot_be_read_or_followed_is_refused(run: RunConfig, content: str, said: str) -> None:
    Path(run.output, "data.json").write_text(content)
    with pytest.raises(UserError, match=said):
        check_data_identity(run)


def test_a_fresh_start_asks_nothing(run: RunConfig, tmp_path: Path) -> None:
    record_data_identity(run, resumes=False)
    make_again(run)
    for folder in Path(run.output, "checkpoints").iterdir():
        folder.rename(tmp_path / folder.name)
    check_start(run)
    assert open_output(run) is None
