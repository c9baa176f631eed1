"""Megatron-Bridge takes every recipe as a GPU would give it: its own checks, before a process group is made."""

from pathlib import Path

import pytest
import torch

from nld_train import recipe
from nld_train.recipe import load_recipe
from nld_train.start.torchrun import IN_ORDER, rank_environment
from tests.convert.conftest import random_output
from tests.distributed.ranks import on, small_run
from tests.sampler_folder import write_collection

pytestmark = pytest.mark.megatron
SAMPLERS = [name for name in recipe.recipe_names() if name.startswith("nld_") and name.endswith("_sampler")]
ON_GPUS = [name for name in recipe.recipe_names() if name.startswith("nld_") and not name.endswith("_sampler")]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_samplers_recipe_is_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_runtime: None
) -> None:
    from megatron.bridge.training.config import runtime_config_update

    from nld_train.train.bridge_config import bridge_config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    folder = write_collection(tmp_path / "trajectories")
    run = recipe.load_recipe(name, [f"data.blend={folder}", "model.vocab_size=400", f"output={tmp_path}/out"])
    monkeypatch.setenv("WORLD_SIZE", str(run.parallel.world_size))
    config = bridge_config(run)
    runtime_config_update(config)  # validates it
    assert config.model.network_shape.features == 144 and config.model.network_shape.width == 384
    assert config.mixed_precision is None and config.ddp.overlap_grad_reduce


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
    assert model.fp8 is None and not model.fp8_param
    assert config.data_parallel_size * run.parallel.tensor * run.parallel.pipeline == run.parallel.world_size


def test_deterministic_kernels_are_asked_of_every_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_runtime: None
) -> None:
    from megatron.bridge.training.config import runtime_config_update

    from nld_train.train.bridge_config import bridge_config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    for word in ("false", "true"):
        run = load_recipe("nld_8b_stage1_ar", [f"output={tmp_path}/out", "init=none", f"train.deterministic={word}"])
        variables = rank_environment(run)
        for name, value in {**variables, "WORLD_SIZE": str(run.parallel.world_size)}.items():
            monkeypatch.setenv(name, value)
        config = bridge_config(run)
        runtime_config_update(config)  # refuses a deterministic mode without NCCL_ALGO
        assert config.model.deterministic_mode == run.train.deterministic
        assert (IN_ORDER.items() <= variables.items()) == run.train.deterministic
    assert asked == [True]


@pytest.mark.parametrize(
    ("fp8", "form", "recipe"),
    [
        ("tensorwise", "hybrid", "Float8CurrentScaling"),
        ("blockwise", "hybrid", "Float8BlockScaling"),
        ("mxfp8", "e4m3", "MXFP8BlockScaling"),
    ],
)
def test_fp8_reaches_megatron(
    fp8: str, form: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_runtime: None
) -> None:
    """Its settings survive Megatron-Bridge's validation, and Megatron-Core makes Transformer Engine's recipe of them,
    one without a state: its checkpoints hold nothing that is unpickled, and a trial or an evaluation moves nothing."""
    from megatron.bridge.training.config import runtime_config_update
    from megatron.core.fp8_utils import get_fp8_recipe
    from transformer_engine.pytorch._extra_state import is_stateless_recipe

    from nld_train.train.bridge_config import bridge_config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    run = load_recipe("nld_8b_stage1_ar", [f"output={tmp_path}/out", "init=none", f"train.fp8={fp8}"])
    monkeypatch.setenv("WORLD_SIZE", str(run.parallel.world_size))
    config = bridge_config(run)
    runtime_config_update(config)
    model = config.model
    assert (model.fp8, model.fp8_recipe) == (form, fp8) and model.bf16
    assert not model.fp8_param and not config.ddp.fp8_param_gather
    assert not config.ddp.reuse_grad_buf_for_mxfp8_param_ag and not config.optimizer.reuse_grad_buf_for_mxfp8_param_ag
    assert not model.fp8_dot_product_attention and not model.fp8_multi_head_attention
    made = get_fp8_recipe(model)
    assert type(made).__name__ == recipe and is_stateless_recipe(made)
