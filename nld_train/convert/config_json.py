"""config.json of a checkpoint folder: written as the programs that load the published family want it, and read back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nld_train.config import ModelConfig
from nld_train.convert.vision_json import read_vision_entries, vision_entries
from nld_train.convert.weight_table import MINISTRAL, MINISTRAL_TEXT, NLD, NLD_VLM, HFNaming
from nld_train.errors import UserError, require
from nld_train.fields import field_types, from_tree
from nld_train.json_file import read_json_object
from nld_train.vision_config import VisionConfig

ARCHITECTURE = "NemotronLabsDiffusionModel"
CAUSAL_CLASS = "NemotronLabsDiffusionForCausalLM"  # the same weights, read causally by default
MODEL_TYPE = "nemotron_labs_diffusion"
VLM_ARCHITECTURE, VLM_TYPE = "NemotronLabsDiffusionVLMModel", "nemotron_labs_diffusion_vlm"
VLM_CAUSAL_CLASS = "NemotronLabsDiffusionVLMForConditionalGeneration"
MINISTRAL_ARCHITECTURE, MINISTRAL_TEXT_TYPE = "Mistral3ForConditionalGeneration", "ministral3"
MINISTRAL_TEXT_ARCHITECTURE = "Ministral3ForCausalLM"
DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
# ModelConfig and RopeConfig in config.json's words, both directions.
SHAPE_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
}
ROPE_KEYS = {
    "theta": "rope_theta",
    "factor": "factor",
    "original_max_position": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "query_scale_beta": "llama_4_scaling_beta",
}
# What the network does not compute: config.json may name it only with these values.
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": None,
}


@dataclass(frozen=True)
class SpecialTokenIds:
    """What a checkpoint folder says of decoding, beyond the network's shape."""

    bos_token_id: int | None  # None: the tokenizer has none
    eos_token_id: int
    mask_token_id: int
    block_size: int

    def check(self, vocab_size: int) -> None:
        """Raises: UserError for an id outside the vocabulary."""
        for name in ("bos_token_id", "eos_token_id", "mask_token_id"):
            token_id = getattr(self, name)
            if token_id is not None and not 0 <= token_id < vocab_size:
                raise UserError(
                    f"{name}={token_id}", f"ids below vocab_size={vocab_size}", "use the id that the tokenizer gives it"
                )


def read_config_token_ids(said: Mapping[str, Any], vocab_size: int) -> SpecialTokenIds:
    """The traits that a config.json names. Raises: UserError for missing ones, and ids outside the vocabulary."""
    traits = from_tree(
        SpecialTokenIds, {name: said[name] for name in field_types(SpecialTokenIds) if name in said}, "config.json: "
    )
    traits.check(vocab_size)
    return traits


def rope_parameters(model: ModelConfig) -> dict[str, Any]:
    """The rotary numbers in config.json's words."""
    return {"rope_type": "yarn"} | {key: getattr(model.rope, name) for name, key in ROPE_KEYS.items()}


def make_config_json(model: ModelConfig, traits: SpecialTokenIds, dtype: torch.dtype) -> dict[str, Any]:
    """The content of config.json; nothing in it is about training."""
    rope = rope_parameters(model)
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": "configuration_nemotron_labs_diffusion.NemotronLabsDiffusionConfig",
            "AutoModel": f"modeling_nemotron_labs_diffusion.{ARCHITECTURE}",
            "AutoModelForCausalLM": f"modeling_nemotron_labs_diffusion.{CAUSAL_CLASS}",
        },
        **{key: getattr(model, name) for name, key in SHAPE_KEYS.items()},
        **FIXED,
        "tie_word_embeddings": False,
        "bos_token_id": traits.bos_token_id,
        "eos_token_id": traits.eos_token_id,
        "mask_token_id": traits.mask_token_id,
        "block_size": traits.block_size,
        "dlm_paradigm": "bidirectional",
        "ar_loss_weight": 1.0,
        "dlm_loss_weight": None,
        "dp_varying_mask_ratio": False,
        "torch_dtype": DTYPE_NAMES[dtype],
        "use_cache": False,
        "max_position_embeddings": model.rope.max_position,
        "rope_parameters": rope,
        # Readers older than rope_parameters look here. rope_theta stands inside of both and never beside them: with a
        # top-level copy, transformers from 5.12 on fails where it reads the folder without our code.
        "rope_scaling": rope,
    }


def make_vlm_config(
    model: ModelConfig, vision: VisionConfig, traits: SpecialTokenIds, dtype: torch.dtype
) -> dict[str, Any]:
    """The content of config.json of a model with a vision tower: the language model's, and the tower beside it."""
    return make_config_json(model, traits, dtype) | {
        "architectures": [VLM_ARCHITECTURE],
        "model_type": VLM_TYPE,
        "auto_map": {
            "AutoConfig": "configuration_nemotron_labs_diffusion_vlm.NemotronLabsDiffusionVLMConfig",
            "AutoModel": f"modeling_nemotron_labs_diffusion_vlm.{VLM_ARCHITECTURE}",
            "AutoModelForImageTextToText": f"modeling_nemotron_labs_diffusion_vlm.{VLM_CAUSAL_CLASS}",
        },
        **vision_entries(vision),
    }


def to_text_config(model: ModelConfig, traits: SpecialTokenIds, dtype: torch.dtype) -> dict[str, Any]:
    """The content of config.json for the same weights as Ministral3ForCausalLM, which decodes left to right alone.

    Mask and block size are of no use to that class; they stand there for `nld convert import`.
    """
    return {
        "architectures": [MINISTRAL_TEXT_ARCHITECTURE],
        "model_type": MINISTRAL_TEXT_TYPE,
        **{key: getattr(model, name) for name, key in SHAPE_KEYS.items()},
        **{key: FIXED[key] for key in ("hidden_act", "attention_dropout", "sliding_window")},
        "tie_word_embeddings": False,
        "bos_token_id": traits.bos_token_id,
        "eos_token_id": traits.eos_token_id,
        "pad_token_id": None,
        "mask_token_id": traits.mask_token_id,
        "block_size": traits.block_size,
        "torch_dtype": DTYPE_NAMES[dtype],
        "use_cache": True,
        "max_position_embeddings": model.rope.max_position,
        "rope_parameters": rope_parameters(model),
        # vLLM's own class scales queries by this key alone; transformers by the one in rope_parameters.
        "llama_4_scaling": {
            "original_max_position_embeddings": model.rope.original_max_position,
            "beta": model.rope.query_scale_beta,
        },
    }


@dataclass(frozen=True)
class FolderConfig:
    """What a folder's config.json describes."""

    model: ModelConfig
    naming: HFNaming
    tied: bool  # the head may be missing: it is the embedding
    content: dict[str, Any]  # of the language model
    whole: dict[str, Any]  # all of config.json
    vision: VisionConfig | None = None  # None: text alone, or a tower that was not asked for


def with_folder_vision(described: FolderConfig, folder: Path) -> FolderConfig:
    """The description of a folder with its vision tower, where its format has one. Raises: UserError."""
    if described.naming.vision is None:
        return described
    return replace(described, vision=read_vision_entries(folder, described.whole))


def read_folder_config(folder: Path) -> FolderConfig:
    """Read the language model in config.json of the NLD format or of Ministral-3, with a vision tower or without.

    Raises: UserError for a missing file, another architecture, or what the network does not compute.
    """
    path = folder / "config.json"
    content = read_json_object(path, "a Hugging Face checkpoint folder")
    architecture = content.get("architectures")
    for ours, naming in ((ARCHITECTURE, NLD), (VLM_ARCHITECTURE, NLD_VLM)):
        if architecture == [ours]:
            return FolderConfig(parse_model_config(path, content), naming, False, content, content)
    if architecture == [MINISTRAL_ARCHITECTURE]:
        text = content.get("text_config")
        if isinstance(text, dict) and text.get("model_type") == MINISTRAL_TEXT_TYPE:
            tied = bool(content.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
            return FolderConfig(parse_model_config(path, text), MINISTRAL, tied, text, content)
    if architecture == [MINISTRAL_TEXT_ARCHITECTURE]:
        tied = bool(content.get("tie_word_embeddings"))
        return FolderConfig(parse_model_config(path, content), MINISTRAL_TEXT, tied, content, content)
    raise UserError(
        f"{path} describes {architecture}",
        f"[{ARCHITECTURE!r}], [{VLM_ARCHITECTURE!r}], [{MINISTRAL_TEXT_ARCHITECTURE!r}], or "
        f"[{MINISTRAL_ARCHITECTURE!r}] with a text_config of {MINISTRAL_TEXT_TYPE}",
        "use a folder of one of these formats",
    )


def parse_model_config(path: Path, content: Mapping[str, Any]) -> ModelConfig:
    """The shape that a config.json gives. Raises: UserError for missing keys, or what the network does not compute."""
    # rope_parameters is the newer name, and wins where a file has both.
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    require(isinstance(rope, dict), f"{path}: rope_parameters={rope!r}", "an object", "copy the file again")
    # Older files keep rope_theta beside the other rotary numbers.
    rope = {"rope_theta": content.get("rope_theta"), **rope}
    missing = [key for key in SHAPE_KEYS.values() if content.get(key) is None]
    missing += [f"rope_parameters.{key}" for key in ROPE_KEYS.values() if rope.get(key) is None]
    if missing:
        raise UserError(f"{path} without {', '.join(missing)}", "all of the network's numbers", "complete the file")
    for key, computed in FIXED.items():
        if content.get(key, computed) != computed:
            raise UserError(f"{path}: {key}={content[key]!r}", repr(computed), "use a model of this family")
    shape: dict[str, Any] = {name: content[key] for name, key in SHAPE_KEYS.items()}
    shape["rope"] = {name: rope[key] for name, key in ROPE_KEYS.items()}
    return from_tree(ModelConfig, shape, f"{path}: ")
