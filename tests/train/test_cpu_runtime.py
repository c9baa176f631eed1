"""What the CPU computes in the place of Transformer Engine's kernels."""

import math

import torch

from nld_train.train.cpu_runtime import _l2_norm


def test_the_gradient_norm_of_millions_of_numbers_is_right_to_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.rand(size, generator=generator) for size in (8_000_000, 1000, 1)]
    exact = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))
    norm, _ = _l2_norm(0, torch.zeros(1), [gradients])
    assert norm.dtype == torch.float32, "Megatron adds it to the float32 zero of a rank without gradients"
    assert abs(norm.item() / exact - 1) < 1e-7
