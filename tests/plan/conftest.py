"""Runs small enough to count by hand, and the layer that the plan reckons with."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from nld_train.config import (
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)

SMALL = ModelConfig(layers=4, hidden=24, ffn=40, heads=8, kv_heads=4, head_dim=8, vocab_size=1024)


@pytest.fixture
def small_run() -> Callable[..., RunConfig]:
    """Build a run of SMALL; keywords are settings of ParallelConfig, or one of the few named here."""

    def build(
        alpha: float = 0.3, micro_batch: int = 2, global_batch: int = 64, precision: Any = "bf16", **cut: Any
    ) -> RunConfig:
        return RunConfig(
            name="small",
            output="out/small",
            model=SMALL,
            diffusion=DiffusionConfig(alpha=alpha, block_size=8, mask_token_id=100),
            data=DataConfig(blend=("data/a",), tokenizer="data/tokenizer", sequence_length=32),
            train=TrainConfig(iterations=10, global_batch=global_batch, micro_batch=micro_batch, precision=precision),
            optimizer=OptimizerConfig(lr=1e-3, min_lr=1e-4, warmup_iterations=0, decay_iterations=0),
            parallel=ParallelConfig(**{"world_size": 8, **cut}),
        )

    return build


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up of [gate | up], fused: keeps its input alone, like Megatron's."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, -1)
        return functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        sigma = gate.sigmoid()
        return torch.cat([gradient * up * sigma * (1 + gate * (1 - sigma)), gradient * gate * sigma], -1)


class Layer(torch.nn.Module):
    """One decoder layer in plain torch, with fused norms and attention."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.model = model
        queries, projected = model.heads * model.head_dim, (model.heads + 2 * model.kv_heads) * model.head_dim
        self.qkv = torch.nn.Linear(model.hidden, projected, bias=False)
        self.output = torch.nn.Linear(queries, model.hidden, bias=False)
        self.gate_up = torch.nn.Linear(model.hidden, 2 * model.ffn, bias=False)
        self.down = torch.nn.Linear(model.ffn, model.hidden, bias=False)
        self.input_norm, self.mlp_norm = torch.nn.RMSNorm(model.hidden), torch.nn.RMSNorm(model.hidden)
        for norm in (self.input_norm, self.mlp_norm):
            norm.weight.requires_grad_(False)  # else torch keeps the normalised rows, which fused norms make again

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, E] -> [B, S, E]."""
        x = x + self.output(self.attend(self.qkv(self.input_norm(x))))
        return x + self.down(SwiGLU.apply(self.gate_up(self.mlp_norm(x))))

    def attend(self, projected: Tensor) -> Tensor:
        model = self.model
        heads = projected.unflatten(-1, (-1, model.head_dim)).transpose(1, 2)
        query, key, value = heads.split([model.heads, model.kv_heads, model.kv_heads], 1)
        # Clones stand for rotary: a new query and a new key, while the value stays a view of the projection.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            seen = functional.scaled_dot_product_attention(
                query.clone(), key.clone(), value, is_causal=True, enable_gqa=True
            )
        return seen.transpose(1, 2).flatten(2)


@pytest.fixture
def layer() -> Layer:
    """A layer of SMALL."""
    return Layer(SMALL)
