"""A Megatron checkpoint as a Hugging Face folder, tensor by tensor."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nld_train.convert.config_json import SpecialTokenIds, make_config_json, make_vlm_config, to_text_config
from nld_train.convert.export_readme import export_readme, text_readme, vlm_readme
from nld_train.convert.hf_folder import INDEX, WEIGHTS, exported_code_files
from nld_train.convert.import_checkpoint import require_finite
from nld_train.convert.safetensors_file import tensor_bytes, write_safetensors
from nld_train.convert.sglang import write_sglang_config
from nld_train.convert.source import CheckpointSource
from nld_train.convert.tokenizer_files import export_tokenizer
from nld_train.convert.torch_dist import StoredWeights
from nld_train.convert.vision_json import image_template, write_processor_files
from nld_train.convert.weight_table import MINISTRAL_TEXT, NLD, HFNaming, WeightMapping, split_tensor, weight_mappings
from nld_train.data.chat_template import TEMPLATE, load_chat_template
from nld_train.data.tokenizer import TextTokenizer, load_tokenizer
from nld_train.json_file import write_json_object
from nld_train.vision_config import VisionConfig

logger = logging.getLogger(__name__)
GB, MB = 1e9, 1e6  # bytes


@dataclass(frozen=True)
class ExportOptions:
    """How the weights are written."""

    dtype: torch.dtype = torch.bfloat16
    shard_bytes: int | None = None  # None: one file, which every loader takes
    # NLD_VLM with a vision tower; or MINISTRAL_TEXT: the same weights for programs that decode left to right alone.
    naming: HFNaming = NLD


def write_hf_folder(
    source: CheckpointSource, traits: SpecialTokenIds, tokenizer: Path, target: Path, options: ExportOptions
) -> None:
    """Write everything that an export holds into the empty folder `target`. Raises: UserError."""
    if options.naming is MINISTRAL_TEXT:
        config, text = to_text_config(source.model, traits, options.dtype), text_readme(source, traits)
    elif source.vision is not None:
        config = make_vlm_config(source.model, source.vision, traits, options.dtype)
        text = vlm_readme(source, traits)
    else:
        config, text = make_config_json(source.model, traits, options.dtype), export_readme(source, traits)
        write_sglang_config(traits, target)
    if options.naming is not MINISTRAL_TEXT:
        for path in exported_code_files(vision=source.vision is not None):
            shutil.copyfile(path, target / path.name)
    write_json_object(target / "config.json", config)
    write_json_object(
        target / "generation_config.json",
        {"bos_token_id": traits.bos_token_id, "eos_token_id": traits.eos_token_id},
    )
    export_tokenizer(tokenizer, target, traits.eos_token_id)
    if source.vision is not None:
        write_image_files(source.vision, load_tokenizer(tokenizer), target)
    (target / "README.md").write_text(text, encoding="utf-8")
    write_hf_weights(source, target, options)


def write_image_files(vision: VisionConfig, tokenizer: TextTokenizer, target: Path) -> None:
    """Write what makes tokens and pixels of images: the processor's files, and a chat template that takes images."""
    write_processor_files(vision, tokenizer, target)
    template = load_chat_template(tokenizer, thinking=False).text
    (target / TEMPLATE).write_text(image_template(vision, tokenizer, template), encoding="utf-8")


def write_hf_weights(source: CheckpointSource, target: Path, options: ExportOptions) -> None:
    """Write the tensors: model.safetensors, or shards and their index."""
    shards = split_into_shards(weight_mappings(source.model, options.naming, source.vision), options)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = WEIGHTS if options.shard_bytes is None else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        parts = [part for unit in shard for part in unit.parts]
        logger.info("writing %s: %d tensors, %s", name, len(parts), bytes_text(mapping_bytes(shard, options.dtype)))
        write_safetensors(target / name, parts, options.dtype, iter_hf_tensors(source.weights, shard, options.dtype))
        weight_map |= {part.name: name for part in parts}
    if options.shard_bytes is not None:
        total = sum(mapping_bytes(shard, options.dtype) for shard in shards)
        write_json_object(target / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def bytes_text(count: int) -> str:
    """Bytes in GB or MB."""
    return f"{count / GB:.2f} GB" if count >= GB else f"{count / MB:.2f} MB"


def mapping_bytes(shard: Sequence[WeightMapping], dtype: torch.dtype) -> int:
    return sum(tensor_bytes(dtype, unit.shape) for unit in shard)


def split_into_shards(table: Sequence[WeightMapping], options: ExportOptions) -> list[list[WeightMapping]]:
    """The table in shards of at most shard_bytes, or of one unit where that alone is larger."""
    shards: list[list[WeightMapping]] = [[]]
    for unit in table:
        grown = mapping_bytes([*shards[-1], unit], options.dtype)
        if shards[-1] and options.shard_bytes is not None and grown > options.shard_bytes:
            shards.append([])
        shards[-1].append(unit)
    return shards


def iter_hf_tensors(weights: StoredWeights, table: Sequence[WeightMapping], dtype: torch.dtype) -> Iterator[Tensor]:
    """The Hugging Face tensors of the mappings in order, each as consecutive row ranges [rows, ...] in `dtype`."""
    for unit in table:
        if len(unit.parts) == 1:
            for first, last in weights.row_ranges(unit):
                yield require_finite(weights.read(unit, dtype, first, last), unit.name, weights.folder)
        else:
            yield from split_tensor(unit, require_finite(weights.read(unit, dtype), unit.name, weights.folder))
