"""The sampler's numbers against the network itself."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nld_train.config import ModelConfig
from nld_train.hf.cache_nemotron_labs_diffusion import KVCache
from nld_train.hf.decoding_nemotron_labs_diffusion import evaluation_mode, extend_cache, noisy_logits
from nld_train.hf.sampler_features_nemotron_labs_diffusion import feature_count
from nld_train.hf.sampler_network_nemotron_labs_diffusion import NetworkShape, SamplerNetwork
from nld_train.model_sizes import NLD_8B
from nld_train.objective_sections import COMPONENTS
from nld_train.plan.dry_run import dry_run_text
from nld_train.plan.memory import checkpoint_size, worst_stage
from nld_train.plan.sampler_plan import (
    denoising_bytes,
    denoising_flops,
    described_bytes,
    judging_flops,
    sampler_features,
    sampler_parameters,
)
from nld_train.recipe import load_recipe
from tests.decode.conftest import MASK, make_model

__all__ = ["make_model"]

RUNS = {
    name: load_recipe(*given)
    for name, given in {
        "8b": ("nld_8b_sampler",),
        "tiny": ("tiny_sampler",),
        "mlp": ("tiny_sampler", ["sampler.attention=false"]),
        "narrow": ("tiny_sampler", ["model.hidden=32", "sampler.layers=1"]),
    }.items()
}


def network(run) -> SamplerNetwork:
    asked = run.sampler
    features = feature_count(min(COMPONENTS, run.model.hidden))
    return SamplerNetwork(
        NetworkShape(features, asked.layers, asked.width, asked.ffn, asked.heads, attention=asked.attention)
    )


@pytest.mark.parametrize("name", RUNS)
def test_parameters_are_the_networks(name: str) -> None:
    made = network(RUNS[name])
    assert sampler_parameters(RUNS[name]) == sum(parameter.numel() for parameter in made.parameters())
    assert sampler_features(RUNS[name]) == made.shape.features


def test_the_papers_size() -> None:
    assert sampler_parameters(RUNS["8b"]) == 4_793_089 and sampler_features(RUNS["8b"]) == 144


@pytest.mark.parametrize("name", RUNS)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    made = network(RUNS[name])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the counter knows no other on CPUs
        made(torch.randn(1, 16, made.shape.features), torch.ones(1, 16, dtype=torch.bool))
    run = RUNS[name]
    assert judging_flops(run.sampler, sampler_features(run), 16) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_the_plan_says_what_it_costs_beside_the_model() -> None:
    text = dry_run_text(RUNS["8b"])
    assert "4,793,089: a Transformer over the block" in text and "the model is not loaded" in text
    assert "for a block of 32: 0.06%" in text and "LM-head rows" not in text
    need = worst_stage(RUNS["8b"])
    assert need.weights == need.gradients == 4 * 4_793_089 and need.fits
    assert checkpoint_size(RUNS["8b"]).total == 4 * 4 * 4_793_089


def test_a_forwards_operations(make_model) -> None:
    """Beside those that torch counts while the model runs."""
    model, cache = make_model(40, dtype=torch.float32), KVCache(1)
    with evaluation_mode(model):
        extend_cache(model, torch.full((1, 5), 7), cache)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            noisy_logits(model, torch.full((1, 8), MASK), cache, MASK)
    size = ModelConfig(layers=2, hidden=32, ffn=48, heads=4, kv_heads=2, head_dim=16, vocab_size=40)
    wanted = pytest.approx(denoising_flops(size, 8, 5), rel=0.02)
    assert counter.get_total_flops() == wanted, "rotary angles are a product, too"


def test_bytes_at_the_size_of_the_8b() -> None:
    assert denoising_bytes(NLD_8B, 0) == 2 * (8_489_553_920 - 131_072 * 4096)
    assert denoising_bytes(NLD_8B, 1000) - denoising_bytes(NLD_8B, 0) == 2 * 2 * 34 * 8 * 128 * 1000
    assert described_bytes(131_072, 7) == 7 * described_bytes(131_072, 1) < 0.02 * denoising_bytes(NLD_8B, 0)
