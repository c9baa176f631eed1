"""Damaged tokens do not train: payloads are compared once with their checksums."""

import logging
import os
import queue
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nld_train.config import RunConfig
from nld_train.data import token_file, verified
from nld_train.data.manifest import read_manifest, write_manifest
from nld_train.data.token_file import bin_path, block_digest_of
from nld_train.data.verified import compare_payloads, unread_payloads, verified_file, verified_run_data
from nld_train.errors import UserError
from tests.distributed.ranks import on, small_run
from tests.saved import flip


@pytest.fixture
def run(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run on copies of both files, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return small_run("run", tmp_path, alpha=0.0, init=None, parallel=on(1))


def verify(run: RunConfig) -> None:
    compare_payloads(unread_payloads(run), threading.Event())


def read_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from here on."""
    found: list[str] = []
    hash_stretch = verified.hash_stretch

    def noted(path: str, *rest: object) -> bytes:
        found.append(Path(path).name)
        return hash_stretch(path, *rest)

    monkeypatch.setattr(verified, "hash_stretch", noted)
    return found


def test_a_flipped_bit_is_refused_before_training(run: RunConfig, tmp_path: Path) -> None:
    with verified_run_data(run, not_beside):
        pass
    flip(bin_path(tmp_path / "data" / "b"))
    with pytest.raises(UserError, match=r"data/b\.bin has SHA-256 .* as in .*data/b\.manifest\.json"):
        verified_run_data(run, not_beside).__enter__()


def not_beside(error: UserError) -> None:
    raise AssertionError(error)


def test_large_data_is_read_beside_the_training(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "AT_ONCE", 0)
    flip(bin_path(tmp_path / "data" / "b"))
    refused: queue.Queue[UserError] = queue.Queue()
    with verified_run_data(run, refused.put):
        assert "data/b.bin has SHA-256" in str(refused.get(timeout=60))


def test_a_run_that_ends_first_leaves_the_rest_unread(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "AT_ONCE", 0)
    hold, hash_stretch = threading.Event(), verified.hash_stretch

    def held(*given: Any) -> bytes:
        assert hold.wait(60)
        return hash_stretch(*given)

    monkeypatch.setattr(verified, "hash_stretch", held)
    threading.Timer(0.5, hold.set).start()
    with verified_run_data(run, not_beside):
        pass
    assert not verified_file().exists(), "what was not read is not known to be whole"


def test_a_file_is_read_once_until_it_changes(run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_paths(monkeypatch)
    verify(run)
    assert sorted(read) == ["a.bin", "a.idx", "b.bin", "b.idx"]
    verify(run)
    assert len(read) == 4
    os.utime(tmp_path / "data" / "a.bin")
    verify(run)
    assert read[4:] == ["a.bin"]


def test_a_torn_line_of_the_record_costs_a_reading(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    verify(run)
    lines = verified_file().read_text().splitlines()
    verified_file().write_text("\n".join([lines[0][:20], *lines[1:], '{"size": 3}', "7", ""]))
    read = read_paths(monkeypatch)
    verify(run)
    assert len(read) == 1


def test_a_record_that_cannot_be_kept_is_said(run: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("no folder")
    verify(run)
    assert "is read whole at every start" in caplog.text


def test_a_digest_by_blocks_is_compared_by_blocks(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (token_file, verified):
        monkeypatch.setattr(module, "DIGEST_BLOCK", 1 << 16)
    prefix = tmp_path / "data" / "a"
    write_manifest(prefix, replace(read_manifest(prefix), bin_sha256=block_digest_of(bin_path(prefix))))
    read = read_paths(monkeypatch)
    verify(run)
    assert read.count("a.bin") == -(-bin_path(prefix).stat().st_size // (1 << 16)) > 2
    flip(bin_path(prefix))
    with pytest.raises(UserError, match=r"a\.bin has SHA-256"):
        verify(run)


def test_without_verification_the_run_says_so(run: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip(bin_path(tmp_path / "data" / "b"))
    verify(replace(run, data=replace(run.data, verify="never")))
    assert "data.verify=never: the tokens of 2 file(s) are not compared" in caplog.text
    assert not verified_file().exists()


def test_a_long_reading_says_how_far_it_is(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verified, "PATIENCE", 0.0)
    with caplog.at_level(logging.INFO):
        verify(run)
    assert "comparing the data with its checksums: 0.0 of 0.0 GB" in caplog.text
