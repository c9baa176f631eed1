"""Layers of Transformer Engine, as a GPU run has them, built on the CPU: what they ask a checkpoint for is there."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nld_train.config import DrafterConfig, RunConfig
from nld_train.run_folder.checkpoints import newest_complete_step
from nld_train.run_folder.frozen import read_frozen_run
from nld_train.run_folder.paths import step_folder
from tests.convert.test_parity import load
from tests.model.build import build

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_rank")]

FUSED = "TELayerNormColumnParallelLinear"


def built_for_a_gpu(run: RunConfig) -> torch.nn.Module:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        return build(run)


@pytest.fixture(scope="module")
def both(random_run: Path):
    """A run's model on the layers of CPUs, and on those of GPUs."""
    run = read_frozen_run(random_run)
    return build(run), built_for_a_gpu(run)


def stored(model: torch.nn.Module) -> dict[str, Tensor]:
    """Its weights under the names of checkpoints, by layer."""
    state = model.sharded_state_dict()
    weights = ((name, item) for name, item in state.items() if not name.endswith("_extra_state"))
    return {f"{name.split('.')[2] if '.layers.' in name else ''} {item.key}": item.data for name, item in weights}


def names(model: torch.nn.Module) -> set[str]:
    """All that it asks a checkpoint for."""
    return {getattr(item, "unique_key", item.key) for item in model.sharded_state_dict().values()}


def test_a_gpus_layers_are_transformer_engines_around_our_attention(both) -> None:
    layers = both[1].decoder.layers
    for layer in layers:
        assert type(layer.self_attention.linear_qkv).__name__ == type(layer.mlp.linear_fc1).__name__ == FUSED
        assert type(layer.self_attention.core_attention).__name__ == "DualStreamAttention"


def test_what_a_cpu_saves_has_all_that_a_gpu_asks_for(both) -> None:
    on_cpu, on_gpu = map(names, both)
    assert on_gpu <= on_cpu


def test_an_import_has_all_that_a_gpu_asks_for(both, random_run: Path) -> None:
    """Megatron's own loading, which ends where a name is missing; then the same weights lie in both kinds of layers."""
    from megatron.core import dist_checkpointing

    on_cpu, on_gpu = both
    load(on_cpu, random_run)
    folder = step_folder(random_run, newest_complete_step(random_run))
    state = dist_checkpointing.load(on_gpu.sharded_state_dict(), str(folder))
    del state["checkpoint_version"]
    on_gpu.load_state_dict(state)  # states of quantisation too
    on_cpu, on_gpu = map(stored, both)
    assert on_cpu.keys() == on_gpu.keys() and len(on_gpu) == 3 + 6 * len(both[1].decoder.layers)
    for name, weight in on_gpu.items():
        assert torch.equal(on_cpu[name], weight), name


def test_the_drafters_adapter_wraps_a_gpus_output_maps(random_run: Path) -> None:
    from nld_train.model.drafter_adapter import adapted_linears, drafter_lora

    model = drafter_lora(DrafterConfig(rank=8), seed=1)([built_for_a_gpu(read_frozen_run(random_run))])[0]
    maps = adapted_linears(model)
    assert len(maps) == len(model.decoder.layers)
    assert {type(each.to_wrap).__name__ for each in maps} == {"TERowParallelLinear"}
    learned = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(learned) == 2 * len(maps) and all(".adapter." in name for name in learned)
