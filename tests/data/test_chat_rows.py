"""Rows of conversations by number: what is in them, and in which order they come."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nld_train.config import DataConfig
from nld_train.data.blended_rows import BlendedRows
from nld_train.data.chat_rows import ChatFileRows
from nld_train.data.packing import PackedRows
from nld_train.row_arithmetic import PADDING_TOKEN
from tests.chat_files import conversation, write_chat_file

DATA = DataConfig(blend=("chat",), tokenizer="tokenizer", sequence_length=12, shuffle_seed=1, chat=True)
CONVERSATIONS = [conversation(n, prompt=p, seed=n) for n, p in ((5, 2), (6, 3), (20, 4), (12, 1))]


@pytest.fixture
def file(tmp_path: Path) -> ChatFileRows:
    """Rows of 12: the first two conversations; the third, cut; the fourth, which fills its row."""
    prefix = write_chat_file(tmp_path / "chat", CONVERSATIONS)
    return ChatFileRows(str(prefix), PackedRows(np.array([0, 1, 2, 3]), np.array([0, 2, 3, 4])), DATA)


def test_conversations_fill_a_row_from_its_start(file: ChatFileRows) -> None:
    sample = file[0]
    (one, one_counts), (two, two_counts) = CONVERSATIONS[:2]
    assert sample["tokens"].tolist() == [*one, *two, PADDING_TOKEN, PADDING_TOKEN]
    assert sample["supervised"].tolist() == [*one_counts, *two_counts, False, False]
    assert sample["document_lengths"].tolist() == [5, 6, 2]


def test_a_longer_conversation_is_cut_at_its_end(file: ChatFileRows) -> None:
    sample = file[1]
    assert sample["tokens"].tolist() == [*CONVERSATIONS[2][0][:12], PADDING_TOKEN]
    assert sample["supervised"].tolist() == [False] * 4 + [True] * 8 + [False]


def test_behind_a_full_row_lies_one_unsupervised_token(file: ChatFileRows) -> None:
    sample = file[2]
    assert sample["tokens"].shape == sample["supervised"].shape == (13,)
    assert sample["document_lengths"].tolist() == [12, 1]
    assert sample["supervised"][11] and not sample["supervised"][12]


def first_tokens(rows: BlendedRows, start: int, stop: int) -> list[int]:
    return [int(rows[number]["tokens"][0]) for number in range(start, stop)]


def test_every_epoch_takes_every_row_once_in_an_order_of_its_own(file: ChatFileRows) -> None:
    rows = BlendedRows([file], None, range(30))
    epochs = [tuple(first_tokens(rows, start, start + 3)) for start in range(0, 30, 3)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(sorted(int(CONVERSATIONS[i][0][0]) for i in (0, 2, 3)))}
    assert len(set(epochs)) > 1


def test_without_weights_every_file_is_taken_whole_once_per_epoch(file: ChatFileRows, tmp_path: Path) -> None:
    other = ChatFileRows(
        str(write_chat_file(tmp_path / "other", [conversation(8, prompt=2, seed=90 + i) for i in range(5)])),
        PackedRows(np.arange(5), np.arange(6)),
        DATA,
    )
    rows = BlendedRows([file, other], None, range(16))
    first, second = Counter(first_tokens(rows, 0, 8)), Counter(first_tokens(rows, 8, 16))
    assert first == second and len(first) == 8
