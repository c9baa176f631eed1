"""A Hugging Face folder as a Megatron checkpoint that a recipe can start from (`init`)."""

import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from nld_train.config import DiffusionConfig, ModelConfig
from nld_train.convert.config_json import FolderConfig, SpecialTokenIds, read_config_token_ids
from nld_train.convert.hf_folder import HFWeights, copy_tokenizer_files, open_hf_folder, reading_notes
from nld_train.convert.safetensors_file import tensor_bytes
from nld_train.convert.source import check_vocabulary_size
from nld_train.convert.torch_dist import TensorRange, write_torch_dist
from nld_train.convert.weight_table import (
    ATTENTION_OUT,
    FINAL_NORM,
    MLP_IN,
    MLP_OUT,
    QKV,
    WeightMapping,
    join_tensors,
    parameter_count,
    weight_mappings,
)
from nld_train.data.tokenizer import TextTokenizer, begin_of_text_id, end_of_document_id, load_tokenizer
from nld_train.errors import UserError
from nld_train.json_file import write_json_object
from nld_train.run_folder.checkpoints import checkpoint_file_names, checksum_files, write_checkpoint_manifest
from nld_train.run_folder.frozen import model_record, vision_record
from nld_train.run_folder.paths import (
    IMPORT,
    MODEL,
    NEWEST_TRAIN_STATE,
    TOKENIZER,
    TRACKER,
    TRAIN_STATE,
    checkpoints_folder,
    step_folder,
)

logger = logging.getLogger(__name__)
PIECE_BYTES = 1 << 28  # of a vocabulary tensor, per stored piece
STEP = 0
ZIP_WRITER = "inline_container"  # stands in the errors of torch's writer
# Modules that store a quantisation state beside their weights. Megatron refuses a checkpoint without the entries.
STATEFUL = (ATTENTION_OUT, QKV, MLP_IN, MLP_OUT)


def write_imported_output(folder: Path, target: Path, padded_vocab: int | None = None, text_only: bool = False) -> None:
    """Write what an import holds into the empty folder `target`.

    padded_vocab: rows of embedding and head: the vocabulary's, and zeros behind them. text_only: a vision tower is left
    out. Raises: UserError.
    """
    described, weights = open_hf_folder(folder, text_only)
    model = described.model
    for note in reading_notes(described, weights):
        logger.info("%s", note)
    if padded_vocab is not None and padded_vocab < model.vocab_size:
        raise UserError(
            f"--pad-vocab-to {padded_vocab}", f"{model.vocab_size} or more", "give the padded size, or leave it out"
        )
    tokenizer = load_tokenizer(folder)
    check_vocabulary_size(tokenizer, model.vocab_size)
    traits = folder_token_ids(described, tokenizer)
    (target / TOKENIZER).mkdir()
    copy_tokenizer_files(folder, target / TOKENIZER)
    write_json_object(target / MODEL, model_record(model) | vision_record(described.vision))
    write_json_object(target / IMPORT, {"source": folder.name, "traits": asdict(traits)})
    table = weight_mappings(model, described.naming, described.vision)
    logger.info("writing %d tensors, %s parameters", len(table), f"{parameter_count(model, described.vision):,}")
    write_initial_checkpoint(
        target, [piece for unit in table for piece in tensor_ranges(unit, model, weights, padded_vocab)]
    )


def folder_token_ids(described: FolderConfig, tokenizer: TextTokenizer) -> SpecialTokenIds:
    """Ids and block size of a folder. A source that knows no mask and no blocks gets the defaults of training; bos and
    eos that its config.json does not name are the tokenizer's. Raises: UserError.
    """
    ours = DiffusionConfig()
    said = {"mask_token_id": ours.mask_token_id, "block_size": ours.block_size} | described.content
    if said.get("bos_token_id") is None:
        said["bos_token_id"] = begin_of_text_id(tokenizer)
    if said.get("eos_token_id") is None:
        said["eos_token_id"] = end_of_document_id(tokenizer)
    return read_config_token_ids(said, described.model.vocab_size)


def tensor_ranges(
    unit: WeightMapping, model: ModelConfig, weights: HFWeights, padded_vocab: int | None
) -> Iterator[TensorRange]:
    """A unit as it is stored: whole, or by rows where it is a vocabulary tensor."""
    dtype, rest = weights.dtype(unit.parts[0].name), (0,) * (len(unit.shape) - 1)
    if unit.layer is not None:
        size, offsets = (model.layers, *unit.shape), (unit.layer, 0, *rest)
        yield TensorRange(unit.name, size, offsets, (1, *unit.shape), dtype, partial(joined_tensor, unit, weights))
        return
    rows = padded_vocab if unit.padded and padded_vocab is not None else unit.shape[0]
    step = max(1, PIECE_BYTES // tensor_bytes(dtype, unit.shape[1:]))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        read = partial(padded_rows, unit, weights, first, count)
        yield TensorRange(unit.name, (rows, *unit.shape[1:]), (first, *rest), (count, *unit.shape[1:]), dtype, read)


def joined_tensor(unit: WeightMapping, weights: HFWeights) -> Tensor:
    """Megatron's tensor [rows of all parts, ...] of a mapping with several parts. Raises: UserError for NaN."""
    return join_tensors(
        unit, [require_finite(weights.read(part.name), part.name, weights.folder) for part in unit.parts]
    )


def padded_rows(unit: WeightMapping, weights: HFWeights, first: int, count: int) -> Tensor:
    """Rows [count, ...] of a tensor from `first` on, with zeros behind its last one."""
    (part,) = unit.parts
    stored = require_finite(weights.read(part.name, first, first + count), part.name, weights.folder)
    missing = count - len(stored)
    return torch.cat([stored, stored.new_zeros(missing, *part.shape[1:])]) if missing else stored


def require_finite(numbers: Tensor, name: str, folder: Path) -> Tensor:
    """The numbers themselves, of any shape. Raises: UserError where one of them is NaN or infinite."""
    if numbers.numel() and not all(bound.isfinite() for bound in numbers.aminmax()):
        raise UserError(f"{folder}: {name} holds NaN or infinite numbers", "finite weights", "use another checkpoint")
    return numbers


def write_initial_checkpoint(target: Path, pieces: Sequence[TensorRange]) -> None:
    """Write the pieces as step 0, with what Megatron-Bridge reads of a checkpoint to start from."""
    folder = step_folder(target, STEP)
    layers = next(piece.size[0] for piece in pieces if piece.name == QKV)
    objects = {**empty_quantisation_states(layers), "common_state/shard_0_1": {"checkpoint_version": 3.0}}
    try:
        write_torch_dist(folder, pieces, objects)
    except CheckpointException as error:  # torch's wrapping of whatever reading or writing a piece has raised
        cause = next(cause for cause, _ in error.failures.values())
        if ZIP_WRITER in str(cause):
            got = f"{folder} cannot be written: {' '.join(str(cause).split())}"
            raise UserError(got, "a disk with room for the output", "free some space, or choose another one") from error
        raise cause from error
    # Megatron-Core's mark of the format.
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    # JSON is YAML: the layout and what was saved beside the weights, which is nothing.
    write_json_object(
        folder / "run_config.yaml",
        {
            "model": {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1},
            "checkpoint": {"save_optim": False, "save_rng": False, "fully_parallel_save": True},
        },
    )
    state = io.BytesIO()  # not into the file: torch's writer says of a full disk no more than that it fails
    torch.save(initial_train_state(), state)
    (folder / TRAIN_STATE).write_bytes(state.getvalue())
    (checkpoints_folder(target) / NEWEST_TRAIN_STATE).write_bytes(state.getvalue())
    (checkpoints_folder(target) / TRACKER).write_text(str(STEP))
    write_checkpoint_manifest(folder, checksum_files(folder, checkpoint_file_names(folder)))


def empty_quantisation_states(layers: int) -> dict[str, object]:
    """Empty quantisation states under the names of Megatron's sharded objects."""
    modules = [name.removesuffix(".weight") for name in STATEFUL]
    states: dict[str, object] = {
        f"{module}._extra_state/shard_{layer}_{layers}": None for module in modules for layer in range(layers)
    }
    states[f"{FINAL_NORM.removesuffix('.weight')}._extra_state/shard_0_1"] = None
    return states


def initial_train_state() -> dict[str, Tensor]:
    """Megatron-Bridge's TrainState of a run that has not begun: scalars by name."""
    counters = ("step", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    flags = ("do_train", "do_valid", "do_test")
    return {
        **{name: torch.tensor(0, dtype=torch.int64) for name in counters},
        "floating_point_operations_so_far": torch.tensor(0.0, dtype=torch.float64),
        **{name: torch.tensor(False) for name in flags},
    }
