"""A language model and the vision tower of a Ministral-3 in one checkpoint: every bit of each stays as it is."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from nld_train.config import ModelConfig
from nld_train.convert.actions import check_replaceable, log_findings
from nld_train.convert.config_json import FolderConfig, SpecialTokenIds
from nld_train.convert.hf_folder import HFWeights, copy_tokenizer_files, open_hf_folder, reading_notes
from nld_train.convert.import_checkpoint import (
    folder_token_ids,
    require_finite,
    tensor_ranges,
    write_initial_checkpoint,
)
from nld_train.convert.phases import timed_phase
from nld_train.convert.source import (
    CheckpointSource,
    check_vocabulary_size,
    open_checkpoint_source,
    open_source_tokenizer,
    read_output_token_ids,
)
from nld_train.convert.torch_dist import StoredWeights, TensorRange
from nld_train.convert.verify import VerifyFinding, bits_both_ways, check_same_bits, comparison_ranges
from nld_train.convert.vision_json import named_image_tokens
from nld_train.convert.weight_table import NLD, HFNaming, WeightMapping, text_mappings, vision_mappings
from nld_train.data.tokenizer import TextTokenizer, load_tokenizer
from nld_train.errors import UserError, require
from nld_train.files import staged_folder
from nld_train.json_file import write_json_object
from nld_train.run_folder.frozen import model_record, vision_record
from nld_train.run_folder.paths import IMPORT, MODEL, TOKENIZER, is_hf_folder
from nld_train.vision_config import VisionConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextPart:
    """The language model of a merge: of a Hugging Face folder, or of a run or an import."""

    model: ModelConfig
    naming: HFNaming
    weights: HFWeights | StoredWeights
    tokenizer: TextTokenizer
    traits: SpecialTokenIds


def merge_vision(text: Path, vision: Path, target: Path, image_tokens: str, overwrite: bool) -> None:
    """Write the language model of `text` and the tower of `vision` as an import. Raises: UserError; then nothing is
    left behind.

    text: a Hugging Face folder, or the output folder of a run or an import. image_tokens: names of the tokens of cells,
    breaks and ends in the tokenizer of `text`, with commas between.
    """
    check_replaceable(target, IMPORT)
    part = open_text_part(text)
    described, weights = open_tower(vision)
    tower = merged_vision(part, described, vision, image_tokens)
    with staged_folder(target, overwrite) as partial_folder:
        with timed_phase("writing the checkpoint"):
            write_merged_output(part, (described, weights), tower, partial_folder, (text, vision))
        with timed_phase("comparing every bit"):
            log_findings(verify_merge(part, weights, described.naming, partial_folder))
    logger.info("start a recipe with this vision section from it with init=%s", target)


def open_text_part(folder: Path) -> TextPart:
    """The language model of a folder; a vision tower that it may have is left out. Raises: UserError."""
    if is_hf_folder(folder):
        described, weights = open_hf_folder(folder, text_only=True)
        for note in reading_notes(described, weights):
            logger.info("%s", note)
        tokenizer = load_tokenizer(folder)
        check_vocabulary_size(tokenizer, described.model.vocab_size)
        traits = folder_token_ids(described, tokenizer)
        return TextPart(described.model, described.naming, weights, tokenizer, traits)
    source = open_checkpoint_source(folder)
    tokenizer = open_source_tokenizer(source, None)
    traits = read_output_token_ids(source, tokenizer, source.trained_on_chat)
    return TextPart(source.model, NLD, source.weights, tokenizer, traits)


def open_tower(folder: Path) -> tuple[FolderConfig, HFWeights]:
    """The folder that the tower is taken from. Raises: UserError where it has none."""
    described, weights = open_hf_folder(folder)
    if described.vision is None:
        raise UserError(f"{folder} has no vision tower", "a Ministral-3 with its tower", "name another with --vision")
    return described, weights


def merged_vision(part: TextPart, described: FolderConfig, folder: Path, image_tokens: str) -> VisionConfig:
    """The tower behind the language model, with the ids that its images have there. Raises: UserError where the two do
    not go together."""
    assert described.vision is not None, "a folder with a tower"
    for name in ("hidden", "norm_eps"):
        ours, theirs = getattr(part.model, name), getattr(described.model, name)
        require(
            ours == theirs,
            f"the projector of {folder} is made for {name}={theirs}, the language model has {name}={ours}",
            "a tower of a model of the same size",
            "name another folder with --vision",
        )
    names = image_tokens.split(",")
    require(len(names) == 3, f"--image-tokens {image_tokens}", "three names with commas between", "name three")
    image, behind, end = named_image_tokens(part.tokenizer, names)
    vision = replace(described.vision, image_token_id=image, break_token_id=behind, end_token_id=end)
    mask = part.traits.mask_token_id
    got = f"--image-tokens {image_tokens}: one of them is the mask, id {mask}"
    require(mask not in vision.token_ids, got, "three other tokens", "name others")
    return vision


def write_merged_output(
    part: TextPart, tower: tuple[FolderConfig, HFWeights], vision: VisionConfig, target: Path, named: tuple[Path, Path]
) -> None:
    """Write what an import holds into the empty folder `target`. named: the folders that it was made of."""
    described, weights = tower
    (target / TOKENIZER).mkdir()
    copy_tokenizer_files(part.tokenizer.folder, target / TOKENIZER)
    write_json_object(target / MODEL, model_record(part.model) | vision_record(vision))
    text, other = (folder.resolve().name for folder in named)
    write_json_object(target / IMPORT, {"source": text, "vision_source": other, "traits": asdict(part.traits)})
    table = vision_mappings(part.model, described.naming, vision)
    pieces = [piece for unit in table for piece in tensor_ranges(unit, part.model, weights, None)]
    write_initial_checkpoint(target, [*text_pieces(part), *pieces])


def text_pieces(part: TextPart) -> list[TensorRange]:
    """The language model, piece by piece."""
    table, weights = text_mappings(part.model, part.naming), part.weights
    if isinstance(weights, HFWeights):
        return [piece for unit in table for piece in tensor_ranges(unit, part.model, weights, None)]
    return [piece for unit in table for piece in stored_ranges(unit, part.model, weights)]


def stored_ranges(unit: WeightMapping, model: ModelConfig, weights: StoredWeights) -> list[TensorRange]:
    """A unit of a Megatron checkpoint as it lies there, but for padding of the vocabulary, which is left out."""
    dtype, rest = weights.tensors[unit.name].properties.dtype, unit.shape[1:]
    pieces = []
    for first, last in weights.row_ranges(unit) if unit.layer is None else [(0, unit.shape[0])]:
        size, offsets, shape = unit.shape, (first, *[0] * len(rest)), (last - first, *rest)
        if unit.layer is not None:
            size, offsets, shape = (model.layers, *size), (unit.layer, *offsets), (1, *shape)
        read = partial(stored_rows, unit, weights, first, last)
        pieces.append(TensorRange(unit.name, size, offsets, shape, dtype, read))
    return pieces


def stored_rows(unit: WeightMapping, weights: StoredWeights, first: int, last: int) -> Tensor:
    """Rows first..last of a unit, [last - first, ...], as they are stored. Raises: UserError for NaN."""
    return require_finite(
        weights.read(unit, weights.tensors[unit.name].properties.dtype, first, last), unit.name, weights.folder
    )


def verify_merge(part: TextPart, tower: HFWeights, naming: HFNaming, merged: Path) -> list[VerifyFinding]:
    """Compare a merge with both of its sources. Raises: UserError."""
    source = open_checkpoint_source(merged)
    assert source.vision is not None, "a merge has a tower"
    text = replace(source, vision=None)
    if isinstance(part.weights, HFWeights):
        bits_both_ways(text, part.weights, part.naming)
    else:
        compare_stored(text_mappings(part.model, NLD), text, part.weights)
    table = vision_mappings(part.model, naming, source.vision)
    for unit in table:
        for first, last in comparison_ranges(source, unit):
            theirs = tower.read(unit.parts[0].name, first, last)
            check_same_bits(unit.name, source.weights.read(unit, theirs.dtype, first, last), theirs)
    return [VerifyFinding("text", "every bit equal"), VerifyFinding("vision", f"every bit equal, {len(table)} tensors")]


def compare_stored(table: Sequence[WeightMapping], source: CheckpointSource, weights: StoredWeights) -> None:
    """Compare two Megatron checkpoints bit for bit. Raises: UserError."""
    for unit in table:
        dtype = weights.tensors[unit.name].properties.dtype
        for first, last in comparison_ranges(source, unit):
            check_same_bits(
                unit.name, source.weights.read(unit, dtype, first, last), weights.read(unit, dtype, first, last)
            )
