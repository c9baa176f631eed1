"""The noise laws: from a sample to the noise level t of every token, and from t to p and the mask [paper eq. 2].

Given the noise levels, token i is masked with probability exactly p_i, so that the weight 1/p_i leaves the loss
unbiased. All laws are pure functions of the sample: the same on every machine, in every batch, after every resume.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from nld_train.config import NoiseLaw
from nld_train.noise.seeding import MANTISSA_BITS, keyed_uniforms

LARGEST_UNIFORM = 1.0 - 2.0**-MANTISSA_BITS


@dataclass(frozen=True)
class NoiseSample:
    """What a law may look at: everything but the tokens."""

    seed: int
    purpose: str  # e.g. "train", "validation": different purposes draw independently
    index: int  # global sample index
    global_batch: int  # rows per step, over all ranks
    blocks: Tensor  # [L] int64, non-decreasing: block number of every token

    def level_uniforms(self, count: int = 1) -> Tensor:
        return keyed_uniforms(self.seed, self.index, f"{self.purpose}/level", count)

    def token_uniforms(self) -> Tensor:
        return keyed_uniforms(self.seed, self.index, f"{self.purpose}/token", self.blocks.numel())


class NoiseDraw(NamedTuple):
    """A token is masked where its threshold is below p(level)."""

    level: Tensor  # [L] or [1] float64: noise level t of every token
    threshold: Tensor  # [L] float64: uniform on the multiples of 2**-53 in [0, 1)


def _uniform_noise(sample: NoiseSample) -> NoiseDraw:
    """One t ~ U(0, 1) per row."""
    return NoiseDraw(sample.level_uniforms(), sample.token_uniforms())


def _stratified_noise(sample: NoiseSample) -> NoiseDraw:
    """The rows of a global batch share out [0, 1): each has t in a stratum of its own, of width 1/global_batch."""
    step, place = divmod(sample.index, sample.global_batch)
    stratum = stratum_permutation(sample.seed, sample.purpose, step, sample.global_batch)[place]
    return NoiseDraw((stratum + sample.level_uniforms()) / sample.global_batch, sample.token_uniforms())


@lru_cache(maxsize=16)
def stratum_permutation(seed: int, purpose: str, step: int, global_batch: int) -> tuple[int, ...]:
    """The stratum of every row of global batch `step`: a permutation of range(global_batch), made once for its rows."""
    return tuple(keyed_uniforms(seed, step, f"{purpose}/strata", global_batch).argsort(stable=True).tolist())


def _per_block_noise(sample: NoiseSample) -> NoiseDraw:
    """Every block has a t ~ U(0, 1) of its own."""
    levels = sample.level_uniforms(int(sample.blocks[-1]) + 1)
    return NoiseDraw(levels[sample.blocks], sample.token_uniforms())


def _complementary_noise(sample: NoiseSample) -> NoiseDraw:
    """Rows 2k and 2k + 1 are antithetic, t' = 1 - t and u' = 1 - u: every place is masked in at least one of the two.

    Because p + p' = 1 + eps. (True for eps above 6e-8, what rounding p to float32 may take away.) u' is mirrored within
    the multiples of 2**-53 below 1, so that it has exactly the distribution of u.
    """
    even = NoiseSample(sample.seed, sample.purpose, sample.index // 2 * 2, sample.global_batch, sample.blocks)
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

    p is rounded to float32 before the comparison: what is returned is the probability that was used, not one near it.

    Returns: p [L] float32, at least eps (as float32); masked [L] bool, supervision not yet looked at.
    """
    noise = LAWS[law](sample)
    p = ((1.0 - eps) * noise.level + eps).to(torch.float32).expand(sample.blocks.shape)
    return p, noise.threshold < p.to(torch.float64)
