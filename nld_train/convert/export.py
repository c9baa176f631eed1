"""A Megatron checkpoint as a Hugging Face folder, tensor by tensor."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nld_train.convert.config_json import Traits, to_config
from nld_train.convert.hugging_face import INDEX, WEIGHTS, copy_tokenizer, model_files
from nld_train.convert.output import Source
from nld_train.convert.readme import readme
from nld_train.convert.safetensors_file import size_of, write_safetensors
from nld_train.convert.table import NLD, Unit, split, units
from nld_train.convert.torch_dist import StoredWeights
from nld_train.json_file import write_object

logger = logging.getLogger(__name__)
GB, MB = 1e9, 1e6  # bytes


@dataclass(frozen=True)
class ExportOptions:
    """How the weights are written."""

    dtype: torch.dtype = torch.bfloat16
    shard_bytes: int | None = None  # None: one file, which every loader takes


def write_folder(source: Source, traits: Traits, tokenizer: Path, target: Path, options: ExportOptions) -> None:
    """Write everything that an export holds into the empty folder `target`. Raises: UserError."""
    config = to_config(source.model, traits, options.dtype)
    write_object(target / "config.json", config)
    write_object(
        target / "generation_config.json",
        {"bos_token_id": traits.bos_token_id, "eos_token_id": traits.eos_token_id},
    )
    copy_tokenizer(tokenizer, target)
    for path in model_files():
        shutil.copyfile(path, target / path.name)
    (target / "README.md").write_text(readme(source, traits), encoding="utf-8")
    write_weights(source, target, options)


def write_weights(source: Source, target: Path, options: ExportOptions) -> None:
    """Write the tensors: model.safetensors, or shards and their index."""
    shards = cut(units(source.model, NLD), options)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = WEIGHTS if options.shard_bytes is None else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        parts = [part for unit in shard for part in unit.parts]
        logger.info("writing %s: %d tensors, %s", name, len(parts), size_text(unit_bytes(shard, options.dtype)))
        write_safetensors(target / name, parts, options.dtype, pieces(source.weights, shard, options.dtype))
        weight_map |= {part.name: name for part in parts}
    if options.shard_bytes is not None:
        total = sum(unit_bytes(shard, options.dtype) for shard in shards)
        write_object(target / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def size_text(count: int) -> str:
    """Bytes in GB or MB."""
    return f"{count / GB:.2f} GB" if count >= GB else f"{count / MB:.2f} MB"


def unit_bytes(shard: Sequence[Unit], dtype: torch.dtype) -> int:
    return sum(size_of(dtype, unit.shape) for unit in shard)


def cut(table: Sequence[Unit], options: ExportOptions) -> list[list[Unit]]:
    """The table in shards of at most shard_bytes, or of one unit where that alone is larger."""
    shards: list[list[Unit]] = [[]]
    for unit in table:
        grown = unit_bytes([*shards[-1], unit], options.dtype)
        if shards[-1] and options.shard_bytes is not None and grown > options.shard_bytes:
            shards.append([])
        shards[-1].append(unit)
    return shards


def pieces(weights: StoredWeights, table: Sequence[Unit], dtype: torch.dtype) -> Iterator[Tensor]:
    """The Hugging Face tensors of the units in order, as consecutive row ranges in `dtype`."""
    for unit in table:
        if len(unit.parts) == 1:
            for first, last in weights.row_ranges(unit):
                yield weights.read(unit, dtype, first, last)
        else:
            yield from split(unit, weights.read(unit, dtype))
