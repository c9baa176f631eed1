"""The noise laws: they give every token of a sample a noise level t; from t follow p and the mask [paper eq. 2].

Given the noise levels, token i is masked with probability exactly p_i, so that the weight 1/p_i leaves the loss
unbiased. All laws are pure functions of the sample: the same on every machine, in every batch, after every resume.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from nld_train.config import NoiseLaw
from nld_train.noise.seeding import MANTISSA_BITS, keyed_uniforms

LARGEST_UNIFORM = 1.0 - 2.0**-MANTISSA_BITS


@dataclass(frozen=True)
class NoiseSample:
    """What a law may look at: everything about a sample but its tokens."""

    seed: int
    purpose: str  # e.g. "train", "validation": different purposes draw independently
    index: int  # global sample index
    global_batch: int  # rows per step, over all ranks
    blocks: Tensor  # [L] int64, non-decreasing: block number of every token
    level_rows: int  # consecutive rows that share one level under the uniform law

    def level_uniforms(self, count: int = 1) -> Tensor:
        """Uniform numbers for the noise levels: [count] float64."""
        first = self.index // self.level_rows * self.level_rows
        return keyed_uniforms(self.seed, first, f"{self.purpose}/level", count)

    def token_uniforms(self) -> Tensor:
        """Uniform numbers for the masks: [L] float64."""
        return keyed_uniforms(self.seed, self.index, f"{self.purpose}/token", self.blocks.numel())


class NoiseDraw(NamedTuple):
    """A draw of a law: a token is masked iff its threshold is below p(level)."""

    level: Tensor  # [L] or [1] float64: noise level t of every token
    threshold: Tensor  # [L] float64: uniform on the multiples of 2**-53 in [0, 1)


def _uniform_noise(sample: NoiseSample) -> NoiseDraw:
    """Every row has one t ~ U(0, 1), which `level_rows` consecutive rows share."""
    return NoiseDraw(sample.level_uniforms(), sample.token_uniforms())


def _stratified_noise(sample: NoiseSample) -> NoiseDraw:
    """The rows of a global batch share [0, 1) out: each has its t in a stratum of its own, of width 1/global_batch."""
    step, number = divmod(sample.index, sample.global_batch)
    stratum = stratum_permutation(sample.seed, sample.purpose, step, sample.global_batch)[number]
    return NoiseDraw((stratum + sample.level_uniforms()) / sample.global_batch, sample.token_uniforms())


@lru_cache(maxsize=16)
def stratum_permutation(seed: int, purpose: str, step: int, global_batch: int) -> tuple[int, ...]:
    """The stratum of every row of global batch number `step`: a permutation of range(global_batch).

    It is cached, because all rows of the batch ask for it.
    """
    return tuple(keyed_uniforms(seed, step, f"{purpose}/strata", global_batch).argsort(stable=True).tolist())


def _per_block_noise(sample: NoiseSample) -> NoiseDraw:
    """Every block has a t ~ U(0, 1) of its own."""
    blocks = sample.blocks.clamp(min=0)  # an image before the first block is of none, and is never masked
    levels = sample.level_uniforms(int(blocks[-1]) + 1)
    return NoiseDraw(levels[blocks], sample.token_uniforms())


def _complementary_noise(sample: NoiseSample) -> NoiseDraw:
    """Rows 2k and 2k + 1 are antithetic: t' = 1 - t and u' = 1 - u. Every token is masked in at least one of the two.

    For p + p' = 1 + eps, and a token that is not masked has u >= p, so u' <= 1 - p < p'. This holds for eps above 6e-8,
    the most that rounding p to float32 may take away. u' is mirrored within the multiples of 2**-53 below 1, so that
    it has exactly the distribution of u.
    """
    even = replace(sample, index=sample.index // 2 * 2)
    level, threshold = _uniform_noise(even)
    if sample.index == even.index:
        return NoiseDraw(level, threshold)
    return NoiseDraw(1.0 - level, LARGEST_UNIFORM - threshold)


LAWS: dict[NoiseLaw, Callable[[NoiseSample], NoiseDraw]] = {
    "uniform": _uniform_noise,
    "stratified": _stratified_noise,
    "per_block": _per_block_noise,
    "complementary": _complementary_noise,
}


def draw_mask(law: NoiseLaw, eps: float, sample: NoiseSample) -> tuple[Tensor, Tensor]:
    """Masking probabilities and one draw of the mask [paper eq. 2]: p = (1 - eps) * t + eps.

    p is rounded to float32 before the comparison, so that the probability that is returned is the one that was used.

    Returns: p [L] float32, at least eps (as float32); masked [L] bool, for supervised tokens and others alike.
    """
    noise = LAWS[law](sample)
    p = ((1.0 - eps) * noise.level + eps).to(torch.float32).expand(sample.blocks.shape)
    return p, noise.threshold < p.to(torch.float64)
