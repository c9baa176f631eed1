"""The table balances, and its two directions undo each other."""

import pytest
import torch

from nld_train.config import ModelConfig
from nld_train.convert.weight_table import (
    EMBEDDING,
    HEAD,
    MINISTRAL,
    MLP_IN,
    NLD,
    QKV,
    check_hf_shapes,
    check_megatron_shapes,
    join_tensors,
    parameter_count,
    split_tensor,
    tensor_count,
    weight_mappings,
)
from nld_train.errors import UserError
from nld_train.model_sizes import NLD_3B, NLD_8B, NLD_14B
from nld_train.plan import parameters

SMALL = ModelConfig(layers=2, hidden=6, ffn=5, heads=4, kv_heads=2, head_dim=1, vocab_size=7)


def megatron_shapes(model: ModelConfig) -> dict:
    shapes = {}
    for unit in weight_mappings(model, NLD):
        shapes[unit.name] = unit.shape if unit.layer is None else (model.layers, *unit.shape)
    return shapes


def hugging_face_shapes(model: ModelConfig, naming) -> dict:
    return {part.name: part.shape for unit in weight_mappings(model, naming) for part in unit.parts}


@pytest.mark.parametrize(
    ("model", "numbers", "tensors"),
    [(NLD_3B, 3_831_659_520, 237), (NLD_8B, 8_489_553_920, 309), (NLD_14B, 13_506_073_600, 363)],
)
def test_published_sizes(model: ModelConfig, numbers: int, tensors: int) -> None:
    assert parameter_count(model) == parameters.model_parameters(model).total == numbers
    assert tensor_count(model) == len(hugging_face_shapes(model, NLD)) == tensors


def test_names_are_the_published_ones() -> None:
    names = hugging_face_shapes(SMALL, NLD)
    assert {name for name in names if ".layers." not in name} == {
        "encoder.embed_tokens.weight",
        "encoder.norm.weight",
        "diffusion_head.weight",
    }
    assert {name.removeprefix("encoder.layers.1.") for name in names if ".layers.1." in name} == {
        *["input_layernorm.weight", "post_attention_layernorm.weight"],
        *[f"self_attn.{letter}_proj.weight" for letter in "qkvo"],
        *[f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")],
    }
    ministral = hugging_face_shapes(SMALL, MINISTRAL)
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in ministral
    assert "language_model.lm_head.weight" in ministral


def unit_named(name: str):
    return next(unit for unit in weight_mappings(SMALL, NLD) if unit.name == name)


def test_qkv_rows_are_grouped_per_key_value_head() -> None:
    rows = torch.tensor([10, 11, 20, 30, 12, 13, 21, 31])  # q0 q1 k0 v0 of group 0, then of group 1
    query, key, value = split_tensor(unit_named(QKV), rows[:, None].expand(-1, 6))
    assert query[:, 0].tolist() == [10, 11, 12, 13]
    assert key[:, 0].tolist() == [20, 21]
    assert value[:, 0].tolist() == [30, 31]


def test_the_mlp_is_gate_then_up() -> None:
    gate, up = split_tensor(unit_named(MLP_IN), torch.arange(10)[:, None].expand(-1, 6))
    assert gate[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert up[:, 0].tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("naming", [NLD, MINISTRAL])
def test_join_undoes_split(naming) -> None:
    for unit in weight_mappings(SMALL, naming):
        tensor = torch.randn(unit.shape)
        parts = split_tensor(unit, tensor)
        assert [tuple(part.shape) for part in parts] == [part.shape for part in unit.parts]
        assert torch.equal(join_tensors(unit, parts), tensor)


def test_padding_rows_are_allowed_for_the_vocabulary_alone() -> None:
    shapes = megatron_shapes(SMALL)
    check_megatron_shapes("here", shapes | {EMBEDDING: (8, 6), HEAD: (8, 6)}, SMALL)
    with pytest.raises(UserError, match=r"linear_fc1.weight has the shape \[2, 12, 6\]; allowed: \[2, 10, 6\]"):
        check_megatron_shapes("here", shapes | {MLP_IN: (2, 12, 6)}, SMALL)
    with pytest.raises(UserError, match=r"output_layer.weight has the shape \[6, 6\]"):
        check_megatron_shapes("here", shapes | {HEAD: (6, 6)}, SMALL)


@pytest.mark.parametrize("naming", [NLD, MINISTRAL])
def test_missing_unknown_and_misshapen_tensors_are_named(naming) -> None:
    shapes = hugging_face_shapes(SMALL, naming)
    check_hf_shapes("here", shapes, SMALL, naming)
    with pytest.raises(UserError, match=f"here lacks {naming.head}"):
        check_hf_shapes("here", {n: s for n, s in shapes.items() if n != naming.head}, SMALL, naming)
    with pytest.raises(UserError, match="holds tensors that nothing maps: encoder.layers.9.x"):
        check_hf_shapes("here", shapes | {"encoder.layers.9.x": (1,)}, SMALL, naming)
    with pytest.raises(UserError, match=rf"{naming.head} has the shape \[7, 5\]"):
        check_hf_shapes("here", shapes | {naming.head: (7, 5)}, SMALL, naming)


def test_the_vision_parts_are_ignored_in_ministral_alone() -> None:
    extra = {"vision_tower.a": (1,), "multi_modal_projector.b": (1,)}
    check_hf_shapes("here", hugging_face_shapes(SMALL, MINISTRAL) | extra, SMALL, MINISTRAL)
    with pytest.raises(UserError, match="nothing maps: multi_modal_projector.b, vision_tower.a"):
        check_hf_shapes("here", hugging_face_shapes(SMALL, NLD) | extra, SMALL, NLD)
