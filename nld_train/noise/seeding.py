"""Random numbers that belong to a sample and not to a machine: a pure function of (seed, sample index, purpose)."""

import hashlib

import numpy as np
import torch
from torch import Tensor

MANTISSA_BITS = 53  # of a float64: every number drawn is a whole multiple of 2**-53


def keyed_uniforms(seed: int, index: int, purpose: str, count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) for one sample, equal on every machine; no global state is read or changed.

    Philox is keyed by a 64-bit digest of (seed, purpose) and by the sample index: every index has a stream of its own
    that costs the same to reach. Its 64-bit words are turned into floats here, because numpy promises that the words
    stay the same from version to version, but not the floats that its `Generator` makes of them.

    Returns: [count] float64.
    """
    assert index >= 0, f"sample index {index} is negative"
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    key = np.array([int.from_bytes(digest, "little"), index], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(count)
    return torch.from_numpy((words >> np.uint64(64 - MANTISSA_BITS)).astype(np.float64) * 2.0**-MANTISSA_BITS)
