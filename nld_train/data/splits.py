"""Which documents of a file train and which validate, and the shuffles that belong to a seed and an epoch."""

import numpy as np
from numpy.typing import NDArray

from nld_train.config import RunConfig
from nld_train.setting_ranges import split_shares

PARTS = ("train", "validation")
SPLIT_KEY = 0  # the split is the same whatever data.shuffle_seed is
ROW_ORDER, DOCUMENT_ORDER = 0, 1  # what a shuffle is for: each has random words of its own


def parts_read(run: RunConfig) -> tuple[str, ...]:
    """The parts of its files that a run reads."""
    return PARTS if run.train.eval_batches else PARTS[:1]


def split_ends(count: int, split: str) -> tuple[int, int]:
    """How many of `count` documents train, and how many train or validate. Raises UserError.

    A small file's shares are rounded so that both parts have a document: where the validation share is above 0, one of
    two or more documents validates, and one always trains.
    """
    shares = split_shares(split)
    trained = max(round(shares[0] * count), min(count, 1))
    used = max(round((shares[0] + shares[1]) * count), trained)
    if shares[1] > 0 and trained == used and count > 1:
        trained = min(trained, count - 1)
        used = trained + 1
    return trained, used


def part_counts(count: int, split: str) -> dict[str, int]:
    """How many of `count` documents each part has. Raises UserError."""
    trained, used = split_ends(count, split)
    return {"train": trained, "validation": used - trained}


def split_documents(count: int, split: str) -> dict[str, NDArray[np.int64]]:
    """Numbers of the documents of each part, ascending: drawn at random, always the same for a count and shares.

    Files are often several sources one after another: a validation share cut from the end would be the last source.
    Takes about 20 bytes a document, and no sort: a billion documents take half a minute. Raises UserError.
    """
    trained, used = split_ends(count, split)
    bounds = sorted({min(end, count - 1) for end in (trained, used)}) if count else []
    drawn = np.argpartition(random_words(SPLIT_KEY, 0, count, ROW_ORDER), bounds) if count else np.empty(0, np.int64)
    return {"train": _ascending(drawn[:trained], count), "validation": _ascending(drawn[trained:used], count)}


def _ascending(numbers: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    chosen = np.zeros(count, np.bool_)
    chosen[numbers] = True
    return np.flatnonzero(chosen)


def epoch_permutation(seed: int, epoch: int, count: int, purpose: int = ROW_ORDER) -> NDArray[np.int64]:
    """A permutation of range(count) that belongs to (seed, epoch, purpose)."""
    return np.argsort(random_words(seed, epoch, count, purpose), kind="stable")


def random_words(seed: int, epoch: int, count: int, purpose: int) -> NDArray[np.uint64]:
    """`count` random words [count] that belong to (seed, epoch, purpose).

    Philox promises the same words in every version of numpy; `Generator.permutation` does not.
    """
    key, counter = np.array([seed % 2**64, epoch], np.uint64), np.array([0, 0, 0, purpose], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)
