import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.files import check_output_file, staged_files, staged_folder, write_text

SUFFIXES = (".bin", ".idx")


def write(prefix: Path, text: str) -> None:
    for suffix in SUFFIXES:
        Path(f"{prefix}{suffix}").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_take_their_names_together_at_the_end(tmp_path: Path) -> None:
    with staged_files(tmp_path / "deep" / "a.b", SUFFIXES, overwrite=False) as partial:
        write(partial, "new")
        assert not list((tmp_path / "deep").glob("a.b*"))
    assert contents(tmp_path / "deep") == {"a.b.bin": "new", "a.b.idx": "new"}


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path, failure: type[BaseException]) -> None:
    write(tmp_path / "a", "old")
    with pytest.raises(failure), staged_files(tmp_path / "a", SUFFIXES, overwrite=True) as partial:
        write(partial, "new")
        raise failure
    assert contents(tmp_path) == {"a.bin": "old", "a.idx": "old"}


def test_an_interrupted_replacement_has_no_last_file(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")
    with pytest.raises(FileNotFoundError), staged_files(tmp_path / "a", SUFFIXES, overwrite=True) as partial:
        Path(f"{partial}.bin").write_text("new")  # the .idx is missing: the second rename fails
    assert contents(tmp_path) == {"a.bin": "new"}


def test_existing_files_are_replaced_only_on_request(tmp_path: Path) -> None:
    Path(tmp_path / "a.idx").write_text("old")
    with pytest.raises(UserError, match=r"a\.idx exists"), staged_files(tmp_path / "a", SUFFIXES, overwrite=False):
        raise AssertionError("the block must not run")
    with staged_files(tmp_path / "a", SUFFIXES, overwrite=True) as partial:
        write(partial, "new")
    assert contents(tmp_path) == {"a.bin": "new", "a.idx": "new"}


def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="room"), staged_files(tmp_path / "a", SUFFIXES, overwrite=False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot write"),
        staged_files(tmp_path / "file" / "a", SUFFIXES, overwrite=False),
    ):
        raise AssertionError("the block must not run")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with pytest.raises(RuntimeError), staged_folder(target, overwrite=False) as partial:
        (partial / "x").write_text("1")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    for text in ("1", "2"):
        with staged_folder(target, overwrite=True) as partial:
            (partial / "x").write_text(text)
        assert [path.name for path in tmp_path.iterdir()] == ["made"] and (target / "x").read_text() == text
    with pytest.raises(UserError, match="exists"), staged_folder(target, overwrite=False):
        raise AssertionError("the block must not run")


def test_a_file_never_takes_the_place_of_a_folder_or_of_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        for write_or_check in (check_output_file, lambda path: write_text(path, "x")):
            with pytest.raises(UserError, match=f"{name} is no plain file"):
                write_or_check(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo() and sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, said in (
        (Path(""), "the output"),
        (tmp_path / "file" / "x", "no folder"),
        (tmp_path / "none" / "x", "no folder"),
        (tmp_path / ("x" * 300), "cannot write in"),
        (Path("/proc/x"), "cannot write in"),
    ):
        with pytest.raises((UserError, OSError), match=said if len(path.name) < 255 else "too long"):
            check_output_file(path)
    check_output_file(tmp_path / "file")
    check_output_file(tmp_path / "new")
    assert os.listdir(tmp_path) == ["file"]


def test_a_small_file_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """A process may write no file above a size: for it the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(UserError, match="allowed: a disk with room"):
            write_text(tmp_path / "x", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
