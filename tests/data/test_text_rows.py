"""Rows of plain text: every token of an epoch once, in an order that belongs to the epoch and not to the run."""

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nld_train.data import file_threads, text_rows
from nld_train.data.blended_rows import epochs_read
from nld_train.data.manifest import read_manifest
from nld_train.data.run_rows import check_data_parts, describe_first_start, open_run_rows
from nld_train.data.text_rows import TextFileRows, make_text_parts, open_text_parts
from nld_train.data.token_file import TokenFile
from nld_train.errors import UserError
from tests.chat_files import on_conversations, write_text_file
from tests.distributed.ranks import on, small_run, with_train

LENGTH = 64


def open_train(prepared: Path, folder: Path, name: str = "b") -> TextFileRows:
    data = small_run("rows", prepared, alpha=0.0, init=None, parallel=on(1)).data
    prefix = f"{prepared}/data/{name}"
    parts, place = open_text_parts(prefix, data, folder)
    return TextFileRows(prefix, parts["train"], data, place)


def pairs(*rows: np.ndarray) -> Counter:
    """The (token, next token) pairs: each is one AR term."""
    found: Counter = Counter()
    for tokens in rows:
        found.update(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    return found


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_reads_every_token_once_but_for_a_tail_shorter_than_a_row(
    prepared: Path, tmp_path: Path, epoch: int
) -> None:
    rows, file = open_train(prepared, tmp_path), TokenFile(prepared / "data" / "b")
    read = [rows.epoch_row(epoch, place) for place in range(len(rows))]
    whole = np.concatenate([file[int(document)] for document in rows.open_epoch(epoch).documents])
    assert sorted(rows.open_epoch(epoch).documents.tolist()) == rows.part.documents.tolist()
    assert len(whole) - LENGTH - 1 < len(rows) * LENGTH < len(whole), "the tail has 1 to L tokens"
    assert pairs(*(row["tokens"] for row in read)) == pairs(whole[: len(rows) * LENGTH + 1])
    assert all(row["tokens"].shape == (LENGTH + 1,) == (row["document_lengths"].sum(),) for row in read)
    assert all(row["supervised"].all() for row in read)


def test_epochs_have_orders_of_their_own(prepared: Path, tmp_path: Path) -> None:
    rows = open_train(prepared, tmp_path)
    one, two = (rows.open_epoch(epoch) for epoch in (0, 1))
    assert one.documents.tolist() != two.documents.tolist() and one.order.tolist() != two.order.tolist()


def test_a_kept_epoch_is_the_one_that_is_made(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = open_train(prepared, tmp_path).open_epoch(3)
    monkeypatch.setattr(text_rows, "KEPT_FROM", 1)
    open_train(prepared, tmp_path).prepare_epochs(range(2, 4))
    assert sorted(place.name[-2:] for place in tmp_path.glob("text-*/train-*")) == ["-2", "-3"]
    kept = open_train(prepared, tmp_path).open_epoch(3)
    assert isinstance(kept.order, np.memmap)
    for name, array in vars(made).items():
        assert np.array_equal(array, getattr(kept, name))


@pytest.mark.parametrize("kind", ["one file", "blend", "unweighted", "conversations"])
def test_rows_do_not_depend_on_the_length_of_the_run(prepared: Path, tmp_path: Path, kind: str) -> None:
    run = small_run("rows", prepared, alpha=0.3, init=None, parallel=on(1))
    if kind == "conversations":
        run = on_conversations(run, tmp_path)
    elif kind != "blend":
        names = "b" if kind == "one file" else "ab"
        run = replace(run, data=replace(run.data, blend=tuple(f"{prepared}/data/{name}" for name in names)))
    per_epoch = sum(len(file) for file in open_run_rows(run, tmp_path)["train"].files)
    planned = 3 * per_epoch // run.train.global_batch
    short, long = (
        open_run_rows(with_train(run, iterations=n), tmp_path / str(n))["train"] for n in (planned, 3 * planned)
    )
    epochs = {place // len(long.files[file]) for file, place in map(long.place_of, range(len(short)))}
    assert max(epochs) >= 2, "several epochs"
    for number in range(0, len(short), 29):
        assert np.array_equal(short[number]["tokens"], long[number]["tokens"])


def test_the_rows_of_the_second_stage_follow_the_last_of_the_first(prepared: Path, tmp_path: Path) -> None:
    run = small_run("rows", prepared, alpha=0.3, init=None, parallel=on(1))
    first, second = (replace(run, data=replace(run.data, skip_rows=rows)) for rows in (0, 10 * 8))
    one, two, whole = (
        open_run_rows(with_train(stage, iterations=n), tmp_path)
        for stage, n in ((first, 10), (second, 15), (first, 25))
    )
    expected = [whole["train"][number]["tokens"].tolist() for number in range(25 * 8)]
    assert [
        rows["tokens"].tolist()
        for part in (one, two)
        for rows in map(part["train"].__getitem__, range(len(part["train"])))
    ] == expected
    assert np.array_equal(one["validation"][3]["tokens"], two["validation"][3]["tokens"]), "validation stays the same"


def test_a_part_without_a_row_is_refused(prepared: Path, tmp_path: Path) -> None:
    run = small_run("rows", prepared, alpha=0.3, init=None, parallel=on(1))
    run = replace(run, data=replace(run.data, blend=(f"{prepared}/data/b",), split="100,0,0"))
    with pytest.raises(UserError, match="data/b has 0 documents of 0 tokens for validation under data.split=100,0,0"):
        open_run_rows(run, tmp_path)
    assert set(open_run_rows(with_train(run, eval_batches=0), tmp_path)) == {"train"}


def test_40_documents_train_and_validate(tmp_path: Path, prepared: Path) -> None:
    """Under 99,1,0 none validated, and Megatron asked for one for ever."""
    run = small_run("rows", prepared, alpha=0.3, init=None, parallel=on(1))
    run = replace(run, data=replace(run.data, blend=(write_text_file(tmp_path / "few", 40, 70),), split="99,1,0"))
    check_data_parts(run.data.blend[0], read_manifest(run.data.blend[0]), run)
    parts = open_run_rows(run, tmp_path / "index")
    assert len(parts["train"].files[0]) == (39 * 70 - 1) // LENGTH and len(parts["validation"].files[0]) == 1
    shorter = replace(run, data=replace(run.data, blend=(write_text_file(tmp_path / "short", 40, LENGTH),)))
    shorter = replace(shorter, data=replace(shorter.data, split="99,1,0"))
    with pytest.raises(UserError, match="short has 1 documents of 64 tokens for validation under data.split=99,1,0"):
        check_data_parts(shorter.data.blend[0], read_manifest(shorter.data.blend[0]), shorter)
    one = replace(run, data=replace(run.data, blend=(write_text_file(tmp_path / "one", 1, 700),)))
    with pytest.raises(UserError, match="one has 1 documents, and none of them for validation"):
        check_data_parts(one.data.blend[0], read_manifest(one.data.blend[0]), one)


def test_a_validation_part_shorter_than_an_evaluation_is_said(
    tmp_path: Path, prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run("rows", prepared, alpha=0.3, init=None, parallel=on(1))
    run = replace(run, data=replace(run.data, blend=(write_text_file(tmp_path / "few", 40, 70),), split="99,1,0"))
    validation = open_run_rows(run, tmp_path / "index")["validation"]
    assert "an evaluation takes 8 rows; " in caplog.text and "read 8 times" in caplog.text
    assert len({validation[number]["tokens"].tobytes() for number in range(8)}) == 1
    caplog.clear()
    open_run_rows(replace(run, data=replace(run.data, split="50,50,0")), tmp_path / "index")
    assert "an evaluation" not in caplog.text


def test_validation_documents_are_the_same_under_every_seed_and_row_length(prepared: Path, tmp_path: Path) -> None:
    data = small_run("rows", prepared, alpha=0.0, init=None, parallel=on(1)).data
    other = replace(data, shuffle_seed=7, sequence_length=128)
    one, two = (make_text_parts(f"{prepared}/data/b", each)["validation"] for each in (data, other))
    assert one.documents.tolist() == two.documents.tolist()
    assert one.documents[0] < len(one.documents) and not set(one.documents.tolist()) & set(
        make_text_parts(f"{prepared}/data/b", data)["train"].documents.tolist()
    )


def test_files_are_ordered_beside_each_other_and_the_first_start_is_foretold(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run("rows", prepared, alpha=0.3, init=None, parallel=on(1))
    blend = tuple(write_text_file(tmp_path / f"file{number}", 40 + number, 70) for number in range(5))
    run = replace(run, data=replace(run.data, blend=blend, split="50,50,0"))
    small = open_run_rows(run, tmp_path / "small")["train"]
    assert describe_first_start(run, tmp_path / "small") is None, "small epochs are made in a moment"
    monkeypatch.setattr(text_rows, "KEPT_FROM", 1)
    epochs = epochs_read(small.weights, small.asked, [len(file) for file in small.files])
    documents = sum(len(file.part.documents) * len(of_file) for file, of_file in zip(small.files, epochs, strict=True))
    assert f"rows of {documents:,} documents are ordered" in (describe_first_start(run, tmp_path / "kept") or "")

    threads: set[int] = set()
    meet = threading.Barrier(2, timeout=60)
    make_epoch = TextFileRows._make_epoch

    def make_beside_another(rows: TextFileRows, epoch: int) -> text_rows.TextEpoch:
        if len(threads) < 2:
            threads.add(threading.get_ident())
            meet.wait()  # breaks where files wait for each other
        return make_epoch(rows, epoch)

    monkeypatch.setattr(TextFileRows, "_make_epoch", make_beside_another)
    monkeypatch.setattr(file_threads, "count_threads", lambda jobs: 2)
    kept = open_run_rows(run, tmp_path / "kept")["train"]
    assert len(threads) == 2 and describe_first_start(run, tmp_path / "kept") is None
    assert all(np.array_equal(kept[number]["tokens"], small[number]["tokens"]) for number in range(len(small)))
