"""What a trained sampler costs beside the forward of the model whose block it judges: arithmetic, and bytes.

A multiplication and the addition that follows it are two operations. Not counted are norms, activations and softmax, as
in nld_train/plan/flops.py.
"""

from nld_train.config import ModelConfig
from nld_train.hf.sampler_network_nemotron_labs_diffusion import NetworkShape
from nld_train.plan.parameters import matrix_parameters, model_parameters

FLOAT32 = 4  # bytes
# How often describing a distribution (hf/sampler_features) reads or writes all V numbers of a masked position, in
# float32, where every operation reads and writes by itself, as they do without a compiler. Logits are in bfloat16.
PASSES = {
    "pick the position": 1.0,
    "copy to float32": 1.5,
    "argmax, and a scatter behind it, three times": 3 * 3.0,
    "logsumexp": 6.0,
    "softmax": 4.0,
    "surprisal": 5.0,
    "entropy": 4.0,
    "logsumexp without the first": 8.0,
    "sum of squares": 3.0,
    "variance of the surprisal": 8.0,
}


def sampler_flops(shape: NetworkShape, positions: int) -> float:
    """FLOPs of the network over a block of `positions`: all of them, masked or not."""
    attention = 4 * shape.width**2 if shape.attention else 0
    weights = shape.features * shape.width + shape.layers * (attention + 2 * shape.width * shape.ffn) + shape.width
    pairs = 2 * 2 * shape.layers * shape.width * positions**2 if shape.attention else 0
    return 2 * weights * positions + pairs


def denoising_flops(model: ModelConfig, positions: int, past: int) -> float:
    """FLOPs of one forward of a block of `positions` behind `past` cached places, with logits of every position."""
    weights = model.layers * matrix_parameters(model) + model.hidden * model.vocab_size
    pairs = 2 * 2 * model.layers * model.heads * model.head_dim * positions * (past + positions)
    return 2 * weights * positions + pairs


def described_bytes(vocab_size: int, masked: int) -> float:
    """Bytes that describing the distributions of so many masked positions moves, if nothing stays in a cache."""
    return sum(PASSES.values()) * FLOAT32 * vocab_size * masked


def denoising_bytes(model: ModelConfig, past: int, bytes_per_number: int = 2) -> float:
    """Bytes that one forward of a block reads at least: the weights, but for the embedding, and the cached keys and
    values."""
    counted = model_parameters(model)
    cached = 2 * model.layers * model.kv_heads * model.head_dim * past
    return bytes_per_number * (counted.total - counted.embedding + cached)
