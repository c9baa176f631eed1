"""The sampler's network in numbers: parameters, what it keeps of a micro-batch, and what it costs beside the model."""

from nld_train.config import RunConfig
from nld_train.objective_sections import COMPONENTS, SamplerConfig
from nld_train.plan.parameters import model_parameters

TOP, STATISTICS = 3, 12  # tokens and statistics that it is told of a position (hf/sampler_features_...)
FP32 = 4  # bytes


def sampler_features(run: RunConfig) -> int:
    """F: the paper's 144, less where the model's embedding has fewer components."""
    return TOP * min(COMPONENTS, run.model.hidden) + STATISTICS


def sampler_matrices(run: RunConfig) -> int:
    """Weights of the linear maps, each of which a position passes once."""
    asked = sampler_section(run)
    attention = 4 * asked.width**2 if asked.attention else 0
    layer = attention + 2 * asked.width * asked.ffn
    return sampler_features(run) * asked.width + asked.layers * layer + asked.width


def sampler_parameters(run: RunConfig) -> int:
    """All parameters: the matrices, their biases, the two flags and the norms (a weight and a bias each)."""
    asked = sampler_section(run)
    width = asked.width
    norms, attention = 2 * width, 2 * width + 3 * width + width
    layer = norms + asked.ffn + width + (attention if asked.attention else 0)
    return sampler_matrices(run) + width + 2 * width + asked.layers * layer + norms + 1


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


def block_flops(run: RunConfig, length: int) -> float:
    """FLOPs of one forward of the network over a block of `length` tokens."""
    asked = sampler_section(run)
    attention = 2 * 2 * asked.layers * length * length * asked.width if asked.attention else 0
    return 2 * sampler_matrices(run) * length + attention


def model_block_flops(run: RunConfig, length: int) -> float:
    """FLOPs of one denoising forward of the model over a block, its attention to the past left out."""
    count = model_parameters(run.model)
    return 2 * (count.total - count.embedding) * length


def sampler_section(run: RunConfig) -> SamplerConfig:
    assert run.sampler is not None, f"{run.name} trains no sampler"
    return run.sampler
