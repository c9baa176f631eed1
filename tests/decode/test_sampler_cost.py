"""The arithmetic of a sampler's cost against the operations that torch counts while the networks run."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nld_train.config import ModelConfig
from nld_train.decode.sampler_cost import denoising_bytes, denoising_flops, described_bytes, sampler_flops
from nld_train.hf.cache_nemotron_labs_diffusion import KVCache
from nld_train.hf.decoding_nemotron_labs_diffusion import evaluation_mode, extend_cache, noisy_logits
from nld_train.hf.sampler_network_nemotron_labs_diffusion import NetworkShape, SamplerNetwork
from nld_train.model_sizes import NLD_8B
from tests.decode.conftest import MASK


def counted_flops(run) -> int:
    """FLOPs of the matrix products of one call; attention by its definition, so that its products are seen."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("attention", [True, False])
def test_the_samplers_operations(attention: bool) -> None:
    shape = NetworkShape(features=24, layers=3, width=16, ffn=24, heads=2, attention=attention)
    network, features = SamplerNetwork(shape), torch.randn(1, 7, 24)
    counted = counted_flops(lambda: network(features, torch.ones(1, 7, dtype=torch.bool)))
    assert counted == sampler_flops(shape, 7)


def test_a_forwards_operations(make_model) -> None:
    model, cache = make_model(40, dtype=torch.float32), KVCache(1)
    with evaluation_mode(model):
        extend_cache(model, torch.full((1, 5), 7), cache)
        counted = counted_flops(lambda: noisy_logits(model, torch.full((1, 8), MASK), cache, MASK))
    size = ModelConfig(layers=2, hidden=32, ffn=48, heads=4, kv_heads=2, head_dim=16, vocab_size=40)
    assert counted == pytest.approx(denoising_flops(size, 8, 5), rel=0.02), "rotary angles are a product, too"


def test_bytes_at_the_size_of_the_8b() -> None:
    assert denoising_bytes(NLD_8B, 0) == 2 * (8_489_553_920 - 131_072 * 4096)
    assert denoising_bytes(NLD_8B, 1000) - denoising_bytes(NLD_8B, 0) == 2 * 2 * 34 * 8 * 128 * 1000
    assert described_bytes(131_072, 7) == 7 * described_bytes(131_072, 1) < 0.02 * denoising_bytes(NLD_8B, 0)
