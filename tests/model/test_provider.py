"""What is fused and hidden on GPUs, by default and in every recipe for them. Nothing of it runs here."""

import pytest
import torch

from nld_train.recipe import load_recipe, recipe_names
from nld_train.start.torchrun import ONE_QUEUE, rank_environment

LARGE = [name for name in recipe_names() if name.startswith("nld_")]
pytestmark = pytest.mark.megatron


@pytest.fixture
def seems_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize("name", LARGE)
def test_gpu_recipes_fuse_and_hide_what_can_be(name: str, seems_a_gpu: None) -> None:
    from nld_train.model.provider import model_provider
    from nld_train.train.bridge_config import data_parallel_config

    run = load_recipe(name)
    made, sent = model_provider(run), data_parallel_config(run)
    assert made.apply_rope_fusion, (
        "rows of a micro-batch at the same positions: micro_batch 1 where documents are apart"
    )
    assert made.bias_activation_fusion, "SwiGLU"
    assert made.sequence_parallel == (run.parallel.tensor > 1)
    hidden = run.drafter is None
    assert (sent.overlap_grad_reduce, sent.overlap_param_gather) == (hidden, hidden)
    assert sent.use_distributed_optimizer and not sent.check_for_nan_in_grad


def test_packed_rows_side_by_side_do_not_share_their_rotation(seems_a_gpu: None) -> None:
    from nld_train.model.provider import model_provider

    assert not model_provider(load_recipe("nld_3b_sft", ["train.micro_batch=2"])).apply_rope_fusion


def test_norms_are_fused_into_the_maps_behind_them(one_rank: None, seems_a_gpu: None) -> None:
    from nld_train.model.core_attention import DualStreamAttention
    from nld_train.model.provider import decoder_block_spec, model_provider

    made = model_provider(
        load_recipe("nld_8b_stage2_joint", ["model.layers=1", "parallel.tensor=1", "parallel.sequence=false"])
    )
    (layer,) = decoder_block_spec(made).layer_specs
    attention = layer.submodules.self_attention.submodules
    for maps in (attention.linear_qkv, layer.submodules.mlp):
        assert "TELayerNormColumnParallelLinear" in str(maps)
    assert attention.core_attention is DualStreamAttention


@pytest.mark.parametrize("name", LARGE)
def test_transfers_start_before_the_products_that_hide_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ONE_QUEUE, raising=False)
    run = load_recipe(name)
    assert rank_environment(run).get(ONE_QUEUE) == ("1" if run.parallel.tensor > 1 else None)
    monkeypatch.setenv(ONE_QUEUE, "8")
    assert rank_environment(run).get(ONE_QUEUE, "8") == "8", "the site file's own choice stands"
