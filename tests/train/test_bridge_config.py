"""Megatron-Bridge takes every recipe as a GPU would give it: its own checks, before a process group is made."""

from pathlib import Path

import pytest
import torch

from nld_train import recipe
from tests.convert.conftest import random_output
from tests.distributed.ranks import on, small_run

pytestmark = pytest.mark.megatron
ON_GPUS = [name for name in recipe.recipe_names() if name.startswith("nld_")]


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_gpu_recipe_is_taken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_runtime: None) -> None:
    from megatron.bridge.training.config import runtime_config_update

    from nld_train.train.bridge_config import bridge_config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)  # by a test before, with one rank
    before = random_output(small_run("before", tmp_path, alpha=0.3, init=None, parallel=on(1)), torch.float32)
    run = recipe.load_recipe(name, [f"output={tmp_path}/out", f"init={before}"])
    monkeypatch.setenv("WORLD_SIZE", str(run.parallel.world_size))
    config = bridge_config(run)
    runtime_config_update(config)  # validates it
    model, overlapped = config.model, run.drafter is None
    assert model.bf16 and model.apply_rope_fusion and model.bias_activation_fusion and config.ddp.grad_reduce_in_fp32
    assert config.ddp.overlap_grad_reduce == config.ddp.overlap_param_gather == overlapped
    assert model.sequence_parallel == (run.parallel.tensor > 1) and config.dist.distributed_backend == "nccl"
    assert config.data_parallel_size * run.parallel.tensor * run.parallel.pipeline == run.parallel.world_size
