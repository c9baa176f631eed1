"""The mean noise level of every law: numbers alone, so that a run can be planned without torch.

Each law of noise/law.py has its line here; tests/noise/test_mean_level.py compares it with the law's own draws.
"""

from nld_train.config import DiffusionConfig, NoiseLaw

MEAN_LEVELS: dict[NoiseLaw, float] = {
    "uniform": 0.5,
    "stratified": 0.5,  # over the rows of a global batch; a single row's level is uniform in its stratum
    "per_block": 0.5,
    "complementary": 0.5,  # t and 1 - t have the same mean
}


def mean_mask_probability(diffusion: DiffusionConfig) -> float:
    """E[p] of a maskable token under the configured law: (1 - eps) * E[t] + eps [paper eq. 2]."""
    eps = diffusion.noise_eps
    return (1 - eps) * MEAN_LEVELS[diffusion.noise_law] + eps
