import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_prep import prepare_text as module
from data_prep.parts import Shard, opened_parts, parts_of_shard, read_shard, read_work
from data_prep.prepare_text import TextOptions, merge_shards, prepare_shard, prepare_text
from nld_train.errors import UserError

ONE = TextOptions(workers=1, max_bad_lines=2)
SUFFIXES = (".bin", ".idx", ".manifest.json")


def contents(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}{suffix}").read_bytes() for suffix in SUFFIXES]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a large file, small ones, two bad lines, an empty file and one that is not read; small parts."""
    monkeypatch.setattr(module, "PIECE_BYTES", 700)
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [f'{{"text": "line {number} of a file"}}\n' for number in range(300)]
    lines[17] = lines[250] = "{\n"
    (folder / "a.jsonl").write_text("".join(lines))
    for number in range(30):
        (folder / f"b{number:02}.txt").write_text(f"small file {number}\n" * number)
    (folder / "c.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_shards_and_a_merge_make_the_bytes_of_one_process(
    tmp_path: Path, source: Path, tokenizer: Path, count: int
) -> None:
    prefix = tmp_path / "out" / "data"
    results = [prepare_shard([source], prefix, tokenizer, ONE, Shard(n, count)) for n in range(count, 0, -1)]
    assert results[-1].missing == 0 and (count == 1 or results[0].missing > 0)
    assert not list((tmp_path / "out").glob("data*"))
    merged = merge_shards(prefix, workers=1)
    assert merged == prepare_text([source], tmp_path / "whole" / "data", tokenizer, ONE)
    assert contents(prefix) == contents(tmp_path / "whole" / "data")
    assert sum(result.documents for result in results) == merged.documents and merged.bad_lines == 2
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [f"data{suffix}" for suffix in SUFFIXES]


def test_a_missing_shard_is_named_and_made_by_any_later_run(tmp_path: Path, source: Path, tokenizer: Path) -> None:
    prefix = tmp_path / "data"
    for number in (1, 3):
        prepare_shard([source], prefix, tokenizer, ONE, Shard(number, 3))
    with pytest.raises(UserError, match=r"parts of .*data are missing") as error:
        merge_shards(prefix, workers=1)
    assert "\n" not in str(error.value)
    prepare_text([source], prefix, tokenizer, ONE)  # the whole work goes on from what the shards have left
    prepare_text([source], tmp_path / "whole", tokenizer, ONE)
    assert contents(prefix) == contents(tmp_path / "whole")


def test_nothing_to_merge_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 folders of parts"):
        merge_shards(tmp_path / "data", workers=1)


def test_bad_lines_of_all_shards_together_are_limited(tmp_path: Path, source: Path, tokenizer: Path) -> None:
    prefix, strict = tmp_path / "data", TextOptions(workers=1, max_bad_lines=1)
    for number in (1, 2):
        prepare_shard([source / "a.jsonl"], prefix, tokenizer, strict, Shard(number, 2))
    with pytest.raises(UserError, match="more than 1 bad lines") as error:
        merge_shards(prefix, workers=1)
    assert "a.jsonl:18: broken JSON" in str(error.value) and "a.jsonl:251: broken JSON" in str(error.value)
    assert merge_shards(prefix, workers=1, max_bad_lines=2).bad_lines == 2


def test_a_shard_that_begins_within_a_file_counts_its_lines_from_there(
    tmp_path: Path, source: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepare_shard([source / "a.jsonl"], tmp_path / "data", tokenizer, ONE, Shard(2, 2))
    (message,) = caplog.messages
    behind = int(message.split(" behind byte ")[1].split(":")[0])
    line = int(message.split("a.jsonl:")[1].split(" ")[0])
    rest = (source / "a.jsonl").read_bytes()[behind:].split(b"\n")
    first = 0 if (source / "a.jsonl").read_bytes()[behind - 1 : behind] == b"\n" else 1
    assert rest[first + line - 1] == b"{"


@pytest.mark.parametrize("sizes", [[10] * 7, [1000, 1, 1, 1], [1, 1, 1, 1000], [0, 0], [], [5]])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_every_part_is_in_one_shard_and_shards_are_in_order(sizes: list[int], count: int) -> None:
    shards = [parts_of_shard(sizes, Shard(number, count)) for number in range(1, count + 1)]
    assert sum(shards, []) == list(range(len(sizes)))


def test_shards_have_about_equal_shares() -> None:
    shares = [len(parts_of_shard([100] * 100, Shard(number, 8))) for number in range(1, 9)]
    assert sum(shares) == 100 and max(shares) - min(shares) <= 1


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "a/b", "1/0", "-1/4", "1/4/2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="I/N"):
        read_shard(text)


def test_a_shard_and_the_whole_work_keep_each_other_out(tmp_path: Path) -> None:
    prefix = tmp_path / "data"
    with opened_parts(prefix, "key", Shard(1, 2)), opened_parts(prefix, "key", Shard(2, 2)):
        for shard in (None, Shard(1, 2)):
            with pytest.raises(UserError, match="another process"), opened_parts(prefix, "key", shard):
                pass
    with opened_parts(prefix, "key", None), pytest.raises(UserError), opened_parts(prefix, "key", Shard(1, 2)):
        pass


def test_parts_of_other_input_or_options_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = tmp_path / "data"
    with pytest.raises(KeyboardInterrupt), opened_parts(prefix, "one", None) as folder:
        (folder / "part-0.reports.json").write_text("[]")
        raise KeyboardInterrupt
    with caplog.at_level(logging.INFO), opened_parts(prefix, "two", None) as folder:
        assert list(folder.iterdir()) == [] and not list(tmp_path.glob(".data.parts-one"))
    assert "input or options differ" in caplog.text


def test_shards_that_start_together_all_write_the_work(tmp_path: Path, source: Path, tokenizer: Path) -> None:
    work, _ = module.plan_work([source], tokenizer, ONE)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: work.save(tmp_path), range(200)))
    assert read_work(tmp_path) == work and [path.name for path in tmp_path.glob("*work*")] == ["work.json"]
    assert not list(tmp_path.glob(".work*"))


def test_a_disk_that_is_full_from_the_start_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left"), opened_parts(tmp_path / "data", "key", None):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())
