"""The sampler's network in numbers: parameters, what it keeps of a micro-batch, and what it costs beside the model.

FLOPs are counted as in flops.py: two for a multiplication and the addition behind it; norms, activations and softmax
are left out.
"""

from nld_train.config import ModelConfig, RunConfig
from nld_train.objective_sections import COMPONENTS, SamplerConfig
from nld_train.plan.parameters import matrix_parameters, model_parameters

TOP, STATISTICS = 3, 12  # tokens and statistics that it is told of a position (hf/sampler_features_...)
FP32 = 4  # bytes
PAST = 1024  # cached places of the context beside which a dry run counts
# How often describing a distribution (hf/sampler_features_...) reads or writes all V numbers of a masked place, in
# float32, where every operation reads and writes by itself, as they do without a compiler. Logits are in bfloat16.
PASSES = {
    "pick the place": 1.0,
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


def sampler_features(run: RunConfig) -> int:
    """F: the paper's 144, less where the model's embedding has fewer components."""
    return TOP * min(COMPONENTS, run.model.hidden) + STATISTICS


def matrix_weights(asked: SamplerConfig, features: int) -> int:
    """Weights of the linear maps, each of which a place passes once."""
    attention = 4 * asked.width**2 if asked.attention else 0
    layer = attention + 2 * asked.width * asked.ffn
    return features * asked.width + asked.layers * layer + asked.width


def sampler_parameters(run: RunConfig) -> int:
    """All parameters: the matrices, their biases, the two flags and the norms (a weight and a bias each)."""
    asked = sampler_section(run)
    width = asked.width
    norms, attention = 2 * width, 2 * width + 3 * width + width
    layer = norms + asked.ffn + width + (attention if asked.attention else 0)
    return matrix_weights(asked, sampler_features(run)) + width + 2 * width + asked.layers * layer + norms + 1


def sampler_blocks(run: RunConfig) -> int:
    """N at most: the steps of a micro-batch's trajectories, where every step commits one token behind the seed."""
    return run.train.micro_batch * (run.data.sequence_length - 1)


def sampler_activation_bytes(run: RunConfig) -> int:
    """Bytes kept from forward to backward: of each position its features; and of each layer the inputs and outputs of
    two norms and the two results (6 C), query, key and value and what attention gives (4 C), and the FFN's inside
    twice."""
    asked = sampler_section(run)
    layer = 6 * asked.width + 2 * asked.ffn + (4 * asked.width if asked.attention else 0)
    positions = sampler_blocks(run) * run.data.sequence_length
    return positions * (sampler_features(run) + asked.layers * layer + 4 * asked.width) * FP32


def judging_flops(asked: SamplerConfig, features: int, length: int) -> float:
    """FLOPs of one forward of the network over a block of `length` places: all of them, masked or not."""
    pairs = 2 * 2 * asked.layers * asked.width * length**2 if asked.attention else 0
    return 2 * matrix_weights(asked, features) * length + pairs


def denoising_flops(model: ModelConfig, length: int, past: int) -> float:
    """FLOPs of one forward of the model over a block behind `past` cached places, with logits of every place."""
    weights = model.layers * matrix_parameters(model) + model.hidden * model.vocab_size
    pairs = 2 * 2 * model.layers * model.heads * model.head_dim * length * (past + length)
    return 2 * weights * length + pairs


def described_bytes(vocab_size: int, masked: int) -> float:
    """Bytes that describing the distributions of so many masked places moves, if nothing stays in a cache."""
    return sum(PASSES.values()) * FP32 * vocab_size * masked


def denoising_bytes(model: ModelConfig, past: int, bytes_per_number: int = 2) -> float:
    """Bytes that one forward of a block reads at least: the weights, but for the embedding, and the cached keys and
    values."""
    counted = model_parameters(model)
    cached = 2 * model.layers * model.kv_heads * model.head_dim * past
    return bytes_per_number * (counted.total - counted.embedding + cached)


def sampler_section(run: RunConfig) -> SamplerConfig:
    assert run.sampler is not None, f"{run.name} trains no sampler"
    return run.sampler
