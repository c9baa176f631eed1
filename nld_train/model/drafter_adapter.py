"""The drafter's adapter: Megatron-Bridge's LoRA on the attention output map, on while drafting and off elsewhere."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from megatron.bridge.peft.lora import LoRA
from megatron.bridge.peft.lora_layers import LoRALinear
from safetensors import safe_open
from torch import Tensor, nn

from nld_train.model.core_attention import DualStreamAttention
from nld_train.noise.seeding import keyed_uniforms
from nld_train.objectives.contract import LoraSettings
from nld_train.peft_names import WEIGHTS, lora_names

TARGET = "linear_proj"  # Megatron's name of o_proj
LAYER = re.compile(r"\blayers\.(\d+)\.")


class DrafterLinear(LoRALinear):
    """The output map with LoRA on the noisy positions alone.

    At inference the adapter is off while the prompt is read and while drafts are verified: the keys and values that a
    draft looks back on are the base model's. So the adapter leaves the clean half of the doubled row alone, and one
    forward serves both: the adapted model drafts over a past that the base model has read.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """x [S, B, H * D / ranks] -> [S, B, E]; under sequence parallelism this tensor rank's shard of S."""
        output, bias, _ = self.base_linear_forward(x, *args, **kwargs)
        if not self._adapter_enabled:
            return output, bias
        places = torch.arange(x.shape[0], device=x.device)
        noisy = places < self.to_wrap.config.layout.clean_start
        # The adapter has no bias, so that zeros stay zeros in whatever way the ranks share the positions.
        return output + self.adapter(x * noisy[:, None, None].to(x)).reshape(output.shape), bias


@dataclass
class DrafterLoRA(LoRA):
    """Megatron-Bridge's LoRA on o_proj, for noisy positions alone, and with a start that no parallel layout changes."""

    seed: int = 0
    stored: str | None = None  # PEFT folder to start from

    def transform(self, module: nn.Module, name: str | None = None, prefix: str | None = None) -> nn.Module:
        """The module with its adapter, or as it is. Megatron-Bridge calls this for every module."""
        made = super().transform(module, name, prefix)
        if type(made) is not LoRALinear:
            return made
        found = LAYER.search(f"{prefix}.")
        assert found, f"{prefix}.{name} is in no layer"
        linear = DrafterLinear(made.to_wrap, made.adapter)
        if self.stored is None:
            _initialize_adapter(linear, self.seed, int(found[1]))
        else:
            _load_adapter_shard(linear, Path(self.stored), int(found[1]))
        return linear


def drafter_lora(settings: LoraSettings, seed: int) -> DrafterLoRA:
    """The adapter of a run. `seed`: of the start of A, where none is stored."""
    return DrafterLoRA(
        target_modules=[TARGET],
        dim=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        seed=seed,
        stored=settings.adapter,
    )


@torch.no_grad()
def _initialize_adapter(linear: DrafterLinear, seed: int, layer: int) -> None:
    """Give A [r, H * D / ranks] Xavier's uniform start, as this rank's columns of one whole matrix.

    B stays at zero, so that the first drafts are those of the base model.
    """
    adapter, own = linear.adapter, linear.adapter.linear_in.weight
    rank, width = own.shape
    ranks, here = adapter.tp_group.size(), adapter.tp_group.rank()
    bound = math.sqrt(6 / (rank + width * ranks))
    whole = keyed_uniforms(seed, layer, "drafter/lora_A", rank * width * ranks).view(rank, -1)
    own.copy_((2 * whole - 1)[:, here * width : (here + 1) * width] * bound)
    assert not adapter.linear_out.weight.any(), "LoRA's B starts at zero"


@torch.no_grad()
def _load_adapter_shard(linear: DrafterLinear, folder: Path, layer: int) -> None:
    """Load this rank's shard of a layer's A [r, H * D] and B [E, r] from a PEFT folder: of A by its inputs, of B by its
    outputs."""
    adapter = linear.adapter
    here = adapter.tp_group.rank()
    with safe_open(folder / WEIGHTS, "pt") as file:
        a, b = (file.get_tensor(name) for name in lora_names(layer))
    for own, whole, axis in ((adapter.linear_in.weight, a, 1), (adapter.linear_out.weight, b, 0)):
        own.copy_(whole.narrow(axis, here * own.shape[axis], own.shape[axis]))


def adapted_linears(model: nn.Module) -> list[DrafterLinear]:
    """The maps of a model that have the adapter."""
    return [module for module in model.modules() if isinstance(module, DrafterLinear)]


@contextmanager
def verifier_mode(model: nn.Module) -> Iterator[None]:
    """While this is entered, the model is the verifier that judges drafts: the base model, without gradients, which
    reads the noisy half left to right. A model without the adapter is its own verifier.

    Everything is put back on leaving, so before the backward pass of the drafts, which may run their forward again.
    """
    attentions = [module for module in model.modules() if isinstance(module, DualStreamAttention)]
    maps = adapted_linears(model)
    before = [attention.layout for attention in attentions]
    try:
        for attention in attentions:
            attention.layout = replace(attention.layout, noisy_causal=True)
        for linear in maps:
            linear.disable_adapter_layers()
        with torch.no_grad():
            yield
    finally:
        for attention, layout in zip(attentions, before, strict=True):
            attention.layout = layout
        for linear in maps:
            linear.enable_adapter_layers()
