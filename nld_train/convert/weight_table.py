"""The one table of names and shapes between Megatron-Core's checkpoints and Hugging Face's, read in both directions.

Letters: E hidden size, F ffn size, H query heads, G key/value heads, D head dimension, V vocabulary size.
The vision tower and its projector have transformers' own names and shapes on both sides; only the prefix differs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from nld_train.config import ModelConfig
from nld_train.errors import UserError
from nld_train.peft_names import lora_names
from nld_train.vision_config import VisionConfig

Shape = tuple[int, ...]
NAMED = 3  # tensors named in an error

EMBEDDING = "embedding.word_embeddings.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
HEAD = "output_layer.weight"
ATTENTION_NORM = "decoder.layers.self_attention.linear_qkv.layer_norm_weight"
QKV = "decoder.layers.self_attention.linear_qkv.weight"
ATTENTION_OUT = "decoder.layers.self_attention.linear_proj.weight"
ADAPTER_IN = "decoder.layers.self_attention.linear_proj.adapter.linear_in.weight"
ADAPTER_OUT = "decoder.layers.self_attention.linear_proj.adapter.linear_out.weight"
MLP_NORM = "decoder.layers.mlp.linear_fc1.layer_norm_weight"
MLP_IN = "decoder.layers.mlp.linear_fc1.weight"
MLP_OUT = "decoder.layers.mlp.linear_fc2.weight"
TOWER, PROJECTOR = "vision_tower.", "multi_modal_projector."


@dataclass(frozen=True)
class HFNaming:
    """Where a Hugging Face layout keeps the network."""

    trunk: str  # embedding, layers and final norm
    head: str
    vision: str | None = None  # what stands before the names of tower and projector; None: the layout has none

    @property
    def embedding(self) -> str:
        return f"{self.trunk}.embed_tokens.weight"

    @property
    def vision_prefixes(self) -> tuple[str, ...]:
        """How the names of tower and projector begin."""
        return () if self.vision is None else (self.vision + TOWER, self.vision + PROJECTOR)


NLD = HFNaming("encoder", "diffusion_head.weight")
NLD_VLM = HFNaming(NLD.trunk, NLD.head, vision="encoder.")
MINISTRAL = HFNaming("language_model.model", "language_model.lm_head.weight", vision="")
# The same model as transformers names its modules; versions differ in which of the two they store.
MINISTRAL_MODULES = HFNaming("model.language_model", "lm_head.weight", vision="model.")
# What transformers calls Ministral3ForCausalLM: the text model alone.
MINISTRAL_TEXT = HFNaming("model", "lm_head.weight")
# Buffers that older versions of transformers stored; they follow from the configuration.
BUFFERS = (".inv_freq",)


@dataclass(frozen=True)
class HFTensor:
    """A Hugging Face tensor."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class WeightMapping:
    """A Megatron tensor (one layer of a stacked one) and the Hugging Face tensors that hold the same numbers.

    Megatron's rows come in `groups`; every group holds an equal share of each part, in the order of the parts.
    """

    name: str
    layer: int | None  # None: not stacked
    shape: Shape  # of one layer, unpadded
    parts: tuple[HFTensor, ...]
    groups: int = 1

    @property
    def padded(self) -> bool:
        """Whether Megatron may hold rows behind the vocabulary's last one."""
        return self.name in (EMBEDDING, HEAD)


def weight_mappings(model: ModelConfig, naming: HFNaming, vision: VisionConfig | None = None) -> list[WeightMapping]:
    """The whole table, in the order of the network. vision: None: the language model alone."""
    return text_mappings(model, naming) + ([] if vision is None else vision_mappings(model, naming, vision))


def text_mappings(model: ModelConfig, naming: HFNaming) -> list[WeightMapping]:
    """The table of the language model."""
    wide, vocabulary = model.hidden, model.vocab_size
    layers = [unit for layer in range(model.layers) for unit in layer_mappings(model, naming, layer)]
    return [
        plain_mapping(EMBEDDING, None, naming.embedding, (vocabulary, wide)),
        *layers,
        plain_mapping(FINAL_NORM, None, f"{naming.trunk}.norm.weight", (wide,)),
        plain_mapping(HEAD, None, naming.head, (vocabulary, wide)),
    ]


def layer_mappings(model: ModelConfig, naming: HFNaming, layer: int) -> list[WeightMapping]:
    """The units of one layer: QKV rows are grouped per key/value head, the MLP's are gate, then up."""
    here, wide = f"{naming.trunk}.layers.{layer}", model.hidden
    inner, shared = model.heads * model.head_dim, model.kv_heads * model.head_dim
    query, key, value = (
        HFTensor(f"{here}.self_attn.{letter}_proj.weight", (rows, wide))
        for letter, rows in (("q", inner), ("k", shared), ("v", shared))
    )
    gate, up = (HFTensor(f"{here}.mlp.{name}_proj.weight", (model.ffn, wide)) for name in ("gate", "up"))
    return [
        plain_mapping(ATTENTION_NORM, layer, f"{here}.input_layernorm.weight", (wide,)),
        WeightMapping(QKV, layer, (inner + 2 * shared, wide), (query, key, value), groups=model.kv_heads),
        plain_mapping(ATTENTION_OUT, layer, f"{here}.self_attn.o_proj.weight", (wide, inner)),
        plain_mapping(MLP_NORM, layer, f"{here}.post_attention_layernorm.weight", (wide,)),
        WeightMapping(MLP_IN, layer, (2 * model.ffn, wide), (gate, up)),
        plain_mapping(MLP_OUT, layer, f"{here}.mlp.down_proj.weight", (wide, model.ffn)),
    ]


def vision_mappings(model: ModelConfig, naming: HFNaming, vision: VisionConfig) -> list[WeightMapping]:
    """The table of tower and projector; none of its tensors is stacked."""
    assert naming.vision is not None, f"{naming} has no place for a tower"
    prefix = naming.vision
    return [plain_mapping(name, None, prefix + name, shape) for name, shape in vision_shapes(model, vision).items()]


def vision_shapes(model: ModelConfig, vision: VisionConfig) -> dict[str, Shape]:
    """Name -> shape of the tensors of PixtralVisionModel and Mistral3MultiModalProjector."""
    wide, patch, text = vision.hidden, vision.patch_size, model.hidden
    shapes: dict[str, Shape] = {
        f"{TOWER}patch_conv.weight": (wide, 3, patch, patch),
        f"{TOWER}ln_pre.weight": (wide,),
    }
    for layer in range(vision.layers):
        here = f"{TOWER}transformer.layers.{layer}"
        shapes[f"{here}.attention_norm.weight"] = (wide,)
        shapes |= {f"{here}.attention.{letter}_proj.weight": (wide, wide) for letter in "qkvo"}
        shapes[f"{here}.ffn_norm.weight"] = (wide,)
        shapes |= {f"{here}.feed_forward.{name}_proj.weight": (vision.ffn, wide) for name in ("gate", "up")}
        shapes[f"{here}.feed_forward.down_proj.weight"] = (wide, vision.ffn)
    return shapes | {
        f"{PROJECTOR}norm.weight": (wide,),
        f"{PROJECTOR}patch_merger.merging_layer.weight": (wide, wide * vision.merge**2),
        f"{PROJECTOR}linear_1.weight": (text, wide),
        f"{PROJECTOR}linear_2.weight": (text, text),
    }


def adapter_mappings(model: ModelConfig, rank: int) -> list[WeightMapping]:
    """The table of a drafter's adapter: LoRA's A and B of every attention output map, by PEFT's names."""
    found = []
    for layer in range(model.layers):
        a, b = lora_names(layer)
        found.append(plain_mapping(ADAPTER_IN, layer, a, (rank, model.heads * model.head_dim)))
        found.append(plain_mapping(ADAPTER_OUT, layer, b, (model.hidden, rank)))
    return found


def plain_mapping(name: str, layer: int | None, part: str, shape: Shape) -> WeightMapping:
    """A tensor that is the same in both."""
    return WeightMapping(name, layer, shape, (HFTensor(part, shape),))


def split_tensor(unit: WeightMapping, tensor: Tensor) -> list[Tensor]:
    """Megatron's tensor [rows, ...] as the mapping's parts [rows of the part, ...], which `join_tensors` undoes.

    With one part, `tensor` may be any range of its rows.
    """
    if len(unit.parts) == 1:
        return [tensor]
    shares = [part.shape[0] // unit.groups for part in unit.parts]
    pieces = tensor.unflatten(0, (unit.groups, -1)).split(shares, dim=1)
    return [piece.flatten(0, 1) for piece in pieces]


def join_tensors(unit: WeightMapping, tensors: Sequence[Tensor]) -> Tensor:
    """The mapping's parts [rows of the part, ...] as Megatron's tensor [rows, ...], which `split_tensor` undoes."""
    return torch.cat([tensor.unflatten(0, (unit.groups, -1)) for tensor in tensors], dim=1).flatten(0, 1)


def tensor_count(model: ModelConfig, vision: VisionConfig | None = None) -> int:
    """Hugging Face tensors of a model: 9 per layer, embedding, final norm, head; and with vision those of tower and
    projector.
    """
    return 9 * model.layers + 3 + (0 if vision is None else len(vision_shapes(model, vision)))


def parameter_count(model: ModelConfig, vision: VisionConfig | None = None) -> int:
    return sum(prod(unit.shape) for unit in weight_mappings(model, NLD_VLM, vision))


def check_megatron_shapes(
    where: str, stored: Mapping[str, Shape], model: ModelConfig, vision: VisionConfig | None = None
) -> None:
    """Check the tensors of a Megatron checkpoint; rows of vocabulary padding are allowed.

    Raises: UserError that names missing tensors, unknown ones, and those of a wrong shape.
    """
    expected: dict[str, Shape] = {}
    for unit in weight_mappings(model, NLD_VLM, vision):
        shape = unit.shape if unit.layer is None else (model.layers, *unit.shape)
        if unit.padded and unit.name in stored and stored[unit.name][0] > shape[0]:
            shape = (stored[unit.name][0], *shape[1:])
        expected[unit.name] = shape
    check_stored_tensors(where, stored, expected, "its model.json")


def check_hf_shapes(
    where: str, stored: Mapping[str, Shape], model: ModelConfig, naming: HFNaming, vision: VisionConfig | None = None
) -> None:
    """Check the tensors of a Hugging Face folder. Raises: UserError, as `check_megatron_shapes`."""
    left_out = ignored_names(stored, naming, text_only=vision is None)
    ours = {name: shape for name, shape in stored.items() if name not in left_out}
    expected = {part.name: part.shape for unit in weight_mappings(model, naming, vision) for part in unit.parts}
    check_stored_tensors(where, ours, expected, "its config.json")


def ignored_names(stored: Iterable[str], naming: HFNaming, text_only: bool) -> set[str]:
    """Names of stored tensors that are not read: rotary buffers, and with `text_only` tower and projector."""
    others = naming.vision_prefixes if text_only else ()
    return {name for name in stored if name.startswith(others) or name.endswith(BUFFERS)}


def check_stored_tensors(where: str, stored: Mapping[str, Shape], expected: Mapping[str, Shape], said_by: str) -> None:
    """Raises: UserError unless exactly the expected tensors are stored."""
    for word, names in (
        ("lacks", expected.keys() - stored.keys()),
        ("holds tensors that nothing maps:", stored.keys() - expected.keys()),
    ):
        if names:
            raise UserError(
                f"{where} {word} {some_names(names)}",
                f"exactly the {len(expected)} tensors of {said_by}",
                "use the whole checkpoint of that model",
            )
    for name, shape in expected.items():
        if stored[name] != shape:
            raise UserError(
                f"{where}: {name} has the shape {list(stored[name])}",
                f"{list(shape)} by {said_by}",
                f"use the weights that belong to {said_by}",
            )


def some_names(names: set[str]) -> str:
    """A few of the names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(sorted(names)[:NAMED]) + more
