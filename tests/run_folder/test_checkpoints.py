"""Which checkpoints are complete: every kind of damage is seen, and named."""

import json
import os
import re
from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.run_folder.checkpoints import (
    MANIFEST,
    READ_BYTES,
    check_checkpoint_contents,
    checkpoint_file_names,
    checkpoint_problem,
    checkpoint_steps,
    checksum_files,
    complete_steps,
    newest_complete_step,
    write_checkpoint_manifest,
)
from nld_train.run_folder.paths import checkpoints_folder
from tests.saved import DAMAGES, SHARD, flip, save_checkpoint


def test_a_finished_checkpoint_is_complete(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 30)
    assert checkpoint_problem(folder, contents=True) is None
    assert complete_steps(tmp_path) == [30]
    check_checkpoint_contents(folder)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("truncated", r"iter_0000030/__0_0\.distcp has 500 of 1,000 bytes"),
        ("bit_flipped", r"iter_0000030/__0_0\.distcp is not what was saved: its crc32 is \w{8}"),
        ("empty", r"iter_0000030/__0_0\.distcp has 0 of 1,000 bytes"),
        ("missing_file", r"iter_0000030/__0_0\.distcp is missing"),
        ("no_manifest", r"iter_0000030 has no manifest\.json: its save was cut off"),
        ("nested_manifest", r"iter_0000030/manifest\.json is damaged"),
        ("cut_manifest", r"iter_0000030/manifest\.json is damaged"),
    ],
)
def test_every_damage_is_named(tmp_path: Path, damage: str, named: str) -> None:
    folder = save_checkpoint(tmp_path, 30)
    DAMAGES[damage](folder)
    found = checkpoint_problem(folder, contents=True)
    assert found is not None and re.fullmatch(named, found)
    with pytest.raises(UserError, match="is damaged"):
        check_checkpoint_contents(folder)


def test_sizes_alone_see_all_but_a_changed_bit(tmp_path: Path) -> None:
    seen = set()
    for step, (damage, harm) in enumerate(DAMAGES.items()):
        folder = save_checkpoint(tmp_path, step)
        harm(folder)
        if checkpoint_problem(folder, contents=False) is not None:
            seen.add(damage)
    assert seen == set(DAMAGES) - {"bit_flipped"}


@pytest.mark.parametrize("manifest", ["[]", '{"files": {}}', '{"files": {"a": 3}}', '{"files": {"a": {"bytes": "1"}}}'])
def test_a_manifest_of_another_shape_is_damaged(tmp_path: Path, manifest: str) -> None:
    folder = save_checkpoint(tmp_path, 30)
    (folder / MANIFEST).write_text(manifest)
    assert checkpoint_problem(folder, contents=False) == "iter_0000030/manifest.json is damaged"


def test_the_newest_is_the_newest_complete_one(tmp_path: Path) -> None:
    assert newest_complete_step(tmp_path) is None
    for step in (5, 30, 200):
        save_checkpoint(tmp_path, step)
    DAMAGES["no_manifest"](checkpoints_folder(tmp_path) / "iter_0000200")
    assert (newest_complete_step(tmp_path), complete_steps(tmp_path), checkpoint_steps(tmp_path)) == (
        30,
        [5, 30],
        [5, 30, 200],
    )


def test_no_complete_one_among_several_is_an_error(tmp_path: Path) -> None:
    DAMAGES["truncated"](save_checkpoint(tmp_path, 30))
    with pytest.raises(UserError, match="no complete checkpoint in .*iter_0000030/__0_0.distcp has 500 of 1,000"):
        newest_complete_step(tmp_path)


def test_files_in_folders_count_and_the_manifest_does_not(tmp_path: Path) -> None:
    (tmp_path / "modelopt").mkdir()
    (tmp_path / "modelopt" / "state.pt").write_bytes(b"state")
    (tmp_path / ".metadata").write_bytes(b"")
    (tmp_path / f".{MANIFEST}.partial").write_text("{")
    assert checkpoint_file_names(tmp_path) == [".metadata", "modelopt/state.pt"]
    write_checkpoint_manifest(tmp_path, checksum_files(tmp_path, checkpoint_file_names(tmp_path)))
    assert checkpoint_problem(tmp_path, contents=True) is None
    flip(tmp_path / "modelopt" / "state.pt")
    assert checkpoint_problem(tmp_path, contents=True) is not None


def test_a_file_of_many_reads_is_summed_whole(tmp_path: Path) -> None:
    large = tmp_path / SHARD
    large.write_bytes(os.urandom(READ_BYTES + 77))
    before = checksum_files(tmp_path, [SHARD])
    assert before[SHARD]["bytes"] == READ_BYTES + 77
    with large.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    assert checksum_files(tmp_path, [SHARD]) != before


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 30)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(files) == {SHARD, "train_state.pt"}
    assert files[SHARD]["bytes"] == 1000
