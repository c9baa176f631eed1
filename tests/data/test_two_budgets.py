"""Packing under two budgets: every row keeps both, and few rows are more than must be."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from nld_train.data.packing import pack_documents
from nld_train.data.two_budgets import pack_two_budgets

Sizes = tuple[NDArray[np.int64], NDArray[np.int64]]


def mixture(count: int, pictured: float, capacity: int, text_capacity: int, median: int = 500) -> Sizes:
    """Lengths and texts of a mixture: of text alone as chat sets have them, and a share of conversations with one to
    three images of 100 to 1,200 tokens and little text."""
    draw = np.random.default_rng(0)
    texts = np.clip(draw.lognormal(np.log(median), 0.8, count), 10, text_capacity).astype(np.int64)
    heavy = draw.random(count) < pictured
    images = np.where(heavy, draw.integers(1, 4, count) * draw.integers(100, 1200, count), 0)
    texts = np.where(heavy, np.minimum(texts, 400), texts)
    fitting = texts + images <= capacity
    return (texts + images)[fitting], texts[fitting]


def check_rows(lengths: NDArray[np.int64], texts: NDArray[np.int64], capacity: int, text_capacity: int) -> float:
    """Pack; rows over the rows that the narrower budget alone would need if it could be filled whole."""
    packed = pack_two_budgets(lengths, texts, capacity, text_capacity)
    assert np.array_equal(np.sort(packed.documents), np.arange(lengths.size))
    row_of = np.repeat(np.arange(len(packed)), np.diff(packed.starts))
    assert np.bincount(row_of, lengths[packed.documents]).max() <= capacity
    assert np.bincount(row_of, texts[packed.documents]).max() <= text_capacity
    assert all((np.diff(packed[row]) > 0).all() for row in range(len(packed)))
    return len(packed) / max(lengths.sum() / capacity, texts.sum() / text_capacity)


@pytest.mark.parametrize("seed", range(30))
def test_small_ones_keep_both_budgets(seed: int) -> None:
    draw = np.random.default_rng(seed)
    capacity = int(draw.integers(10, 60))
    text_capacity = int(draw.integers(5, capacity))
    lengths = draw.integers(1, capacity + 1, int(draw.integers(1, 200)))
    texts = np.minimum(np.minimum(draw.integers(0, capacity + 1, lengths.size), lengths), text_capacity)
    check_rows(lengths, texts, capacity, text_capacity)


def test_images_are_joined_by_text() -> None:
    """Four conversations of images and four of text: a row takes one of each, and half of it may be text."""
    lengths, texts = np.array([50] * 4 + [50] * 4), np.array([0] * 4 + [50] * 4)
    assert len(pack_two_budgets(lengths, texts, 100, 50)) == 4


@pytest.mark.parametrize(
    ("pictured", "capacity", "text_capacity", "most"),
    [(0.5, 8192, 2048, 1.02), (0.5, 8192, 4096, 1.045), (0.5, 8192, 6144, 1.03), (0.9, 8192, 2048, 1.05),
     (0.2, 16384, 8192, 1.01), (0.5, 4096, 2048, 1.09)],
)  # fmt: skip
def test_rows_of_mixtures_are_few(pictured: float, capacity: int, text_capacity: int, most: float) -> None:
    assert check_rows(*mixture(20_000, pictured, capacity, text_capacity), capacity, text_capacity) < most


def test_text_alone_needs_no_more_rows_than_one_budget() -> None:
    _, texts = mixture(20_000, 0.0, 8192, 4096)
    assert len(pack_two_budgets(texts, texts, 8192, 4096)) <= 1.005 * len(pack_documents(texts, 4096))


def test_a_hundred_thousand_take_seconds() -> None:
    lengths, texts = mixture(100_000, 0.5, 8192, 4096)
    start = time.process_time()
    pack_two_budgets(lengths, texts, 8192, 4096)
    assert time.process_time() - start < 10
