"""config.json against the contract with the programs that load the published family."""

import json

import pytest
import torch

from nld_train.convert.config_json import SpecialTokenIds, make_config_json, read_folder_config
from nld_train.convert.weight_table import MINISTRAL, NLD
from nld_train.errors import UserError
from nld_train.model_sizes import NLD_3B, NLD_8B, NLD_14B, TINY

TRAITS = SpecialTokenIds(bos_token_id=1, eos_token_id=2, mask_token_id=100, block_size=32)
PUBLISHED_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1,
    "mscale_all_dim": 1,
    "llama_4_scaling_beta": 0.1,
}
PUBLISHED_8B = {
    "architectures": ["NemotronLabsDiffusionModel"],
    "model_type": "nemotron_labs_diffusion",
    "auto_map": {
        "AutoConfig": "configuration_nemotron_labs_diffusion.NemotronLabsDiffusionConfig",
        "AutoModel": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionModel",
        "AutoModelForCausalLM": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionForCausalLM",
    },
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131072,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "mask_token_id": 100,
    "block_size": 32,
    "dlm_paradigm": "bidirectional",
    "ar_loss_weight": 1.0,
    "dlm_loss_weight": None,
    "dp_varying_mask_ratio": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "max_position_embeddings": 262144,
    "rope_parameters": PUBLISHED_ROPE,
    "rope_scaling": PUBLISHED_ROPE,
}


def test_the_8b_is_the_published_config_key_by_key() -> None:
    assert make_config_json(NLD_8B, TRAITS, torch.bfloat16) == PUBLISHED_8B


def test_the_14b_has_its_own_rotary_base() -> None:
    config = make_config_json(NLD_14B, TRAITS, torch.bfloat16)
    assert config["rope_parameters"]["rope_theta"] == config["rope_scaling"]["rope_theta"] == 1e9


def test_the_rotary_base_never_stands_at_top_level() -> None:
    """There, beside rope_scaling, it breaks AutoTokenizer of transformers 5.12 and newer, and mlx-vlm."""
    assert "rope_theta" not in make_config_json(NLD_8B, TRAITS, torch.bfloat16)


def test_rope_parameters_win_over_the_older_name(tmp_path) -> None:
    other = PUBLISHED_ROPE | {"rope_theta": 5e5, "factor": 2}
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_8B | {"rope_scaling": other}))
    assert read_folder_config(tmp_path).model == NLD_8B
    only_older = {key: value for key, value in PUBLISHED_8B.items() if key != "rope_parameters"}
    (tmp_path / "config.json").write_text(json.dumps(only_older | {"rope_scaling": other}))
    assert read_folder_config(tmp_path).model.rope.theta == 5e5


@pytest.mark.parametrize("model", [TINY, NLD_3B, NLD_8B, NLD_14B])
def test_a_written_config_reads_as_the_model_it_was_written_from(tmp_path, model) -> None:
    (tmp_path / "config.json").write_text(json.dumps(make_config_json(model, TRAITS, torch.float32)))
    described = read_folder_config(tmp_path)
    assert (described.model, described.naming, described.tied) == (model, NLD, False)


def test_the_model_files_read_it(tmp_path) -> None:
    from nld_train.hf.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig

    (tmp_path / "config.json").write_text(json.dumps(make_config_json(TINY, TRAITS, torch.bfloat16)))
    config = NemotronLabsDiffusionConfig.from_pretrained(tmp_path)
    assert config.rope_parameters["factor"] == TINY.rope.factor
    assert config.max_position_embeddings == TINY.rope.max_position == 1024
    assert config.dtype is torch.bfloat16
    assert (config.eos_token_id, config.mask_token_id, config.block_size) == (2, 100, 32)


def ministral(**changes) -> dict:
    text = {key: PUBLISHED_8B[key] for key in PUBLISHED_8B if key not in ("architectures", "auto_map", "rope_scaling")}
    text |= {"model_type": "ministral3"} | changes
    return {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": text}


@pytest.mark.parametrize("tied", [True, False])
def test_ministral_says_whether_it_is_tied(tmp_path, tied: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ministral(tie_word_embeddings=tied)))
    described = read_folder_config(tmp_path)
    assert (described.model, described.naming, described.tied) == (NLD_8B, MINISTRAL, tied)


def test_the_numbers_of_stock_transformers_are_understood(tmp_path) -> None:
    from transformers import Ministral3Config, Mistral3Config

    Mistral3Config(text_config=Ministral3Config(), architectures=["Mistral3ForConditionalGeneration"]).save_pretrained(
        tmp_path
    )
    assert read_folder_config(tmp_path).model == NLD_8B


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, r"describes \['LlamaForCausalLM'\]; allowed: \['NemotronLabsDiff"),
        ({}, "describes None"),
        (PUBLISHED_8B | {"head_dim": None}, "without head_dim"),
        (PUBLISHED_8B | {"hidden_act": "gelu"}, "hidden_act='gelu'; allowed: 'silu'"),
        (PUBLISHED_8B | {"sliding_window": 4096}, "sliding_window=4096; allowed: None"),
        (PUBLISHED_8B | {"num_hidden_layers": "many"}, "layers='many'"),
        (
            PUBLISHED_8B | {"rope_parameters": {"rope_theta": 1e6, "factor": 16}},
            "without rope_parameters.original_max_position_embeddings",
        ),
        (ministral(model_type="mistral"), "text_config of ministral3"),
    ],
)
def test_what_is_not_this_network_is_refused_in_one_line(tmp_path, content: dict, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        read_folder_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_config_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="no config.json in"):
        read_folder_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        read_folder_config(tmp_path)
