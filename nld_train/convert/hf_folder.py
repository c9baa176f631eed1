"""A Hugging Face checkpoint folder: its weights behind one set of names, and what lies beside them."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nld_train.convert.config_json import FolderConfig, read_folder_config, with_folder_vision
from nld_train.convert.folder_files import check_folder_links, check_plain_names
from nld_train.convert.fp8 import ACTIVATION_SCALES, FP8, Fp8Scale, scale_name
from nld_train.convert.safetensors_file import SafetensorsFile
from nld_train.convert.weight_table import (
    MINISTRAL,
    MINISTRAL_MODULES,
    Shape,
    check_hf_shapes,
    ignored_names,
    some_names,
)
from nld_train.errors import UserError, require
from nld_train.json_file import read_json_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
OPTIONAL_TOKENIZER_FILES = ("special_tokens_map.json", "chat_template.jinja")
MODEL_FILES = Path(__file__).resolve().parents[1] / "hf"


class HFWeights:
    """The tensors of a folder, whichever files they lie in. FP8 tensors are read as bfloat16, times their scales."""

    def __init__(self, folder: Path) -> None:
        """Raises: UserError for files that are missing or broken, and FP8 tensors without scales."""
        self.folder = folder
        files = [SafetensorsFile(path) for path in safetensors_files(folder)]
        self.stored = {name: (file, name) for file in files for name in file.entries}
        if (folder / INDEX).is_file():
            self._check_index(read_weight_index(folder))
        self.scales = {
            name: Fp8Scale.of(name, file.entries[name].shape, self.stored)
            for name, (file, _) in self.stored.items()
            if file.entries[name].dtype is FP8
        }
        belonging = {scale_name(name) for name in self.scales} | {
            name for name in self.stored if self.scales and name.endswith(ACTIVATION_SCALES)
        }
        self.places = {name: place for name, place in self.stored.items() if name not in belonging}

    def _check_index(self, named: dict[str, str]) -> None:
        stored = {name: file.path.name for name, (file, _) in self.stored.items()}
        wrong = sorted(name for name in stored.keys() | named.keys() if stored.get(name) != named.get(name))
        if wrong:
            got = f"{self.folder / INDEX} says {named.get(wrong[0])} of {wrong[0]}, it is in {stored.get(wrong[0])}"
            raise UserError(got, "an index of the files beside it", "copy the folder again")

    def tie(self, name: str, stored: str) -> bool:
        """Let a tensor answer to a second name, where the file holds none of that name. Returns: whether it does."""
        if stored not in self.places or name in self.places:
            return False
        self.places[name] = self.places[stored]
        return True

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: file.entries[stored].shape for name, (file, stored) in self.places.items()}

    def dtype(self, name: str) -> torch.dtype:
        file, stored = self.places[name]
        return torch.bfloat16 if stored in self.scales else file.entries[stored].dtype

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """Rows first..last (None: the end) of a tensor, [last - first, ...], as stored, or as bfloat16 where FP8 is."""
        file, stored = self.places[name]
        numbers = file.read(stored, first, last)
        return self.scales[stored].applied(numbers, first) if stored in self.scales else numbers


def safetensors_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that its index names. Raises: UserError."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    return [folder / name for name in sorted(set(read_weight_index(folder).values()))]


def read_weight_index(folder: Path) -> dict[str, str]:
    """Name of a tensor -> its file, as the index says. Raises: UserError where it says something else, or names a file
    that does not lie in the folder."""
    content = read_json_object(folder / INDEX, "an index of safetensors files")
    said = isinstance(content.get("metadata"), dict)  # transformers fails without
    require(said, f"{folder / INDEX} without metadata", "an object, if an empty one", "copy the file again")
    found = content.get("weight_map")
    if not isinstance(found, dict):
        raise UserError(
            f"{folder / INDEX} without a weight_map", "an object of tensors and files", "copy the file again"
        )
    check_plain_names(folder / INDEX, found.values())
    return found


def open_hf_folder(folder: Path, text_only: bool = False) -> tuple[FolderConfig, HFWeights]:
    """Open a folder of the NLD format or of Ministral-3, its tensors checked against its config.json.

    text_only: a vision tower is left out. Where a tied Ministral-3 stores no head, the embedding answers to the head's
    name. Raises: UserError.
    """
    check_folder_links(folder)
    described = read_folder_config(folder)
    described = described if text_only else with_folder_vision(described, folder)
    weights = HFWeights(folder)
    if described.naming is MINISTRAL and MINISTRAL_MODULES.embedding in weights.places:
        described = replace(described, naming=MINISTRAL_MODULES)
    if described.tied:
        weights.tie(described.naming.head, described.naming.embedding)
    check_hf_shapes(str(folder), weights.shapes, described.model, described.naming, described.vision)
    return described, weights


def reading_notes(described: FolderConfig, weights: HFWeights) -> list[str]:
    """A sentence for each thing of a folder that is read as something else than it stands there."""
    notes = []
    if weights.scales:
        notes.append(f"multiplied by their scales, in bfloat16: {len(weights.scales)} FP8 tensors")
    if left_out := ignored_names(weights.places, described.naming, text_only=described.vision is None):
        model = "text model" if described.vision is None else "model"
        notes.append(f"left out, as no weights of the {model}: {len(left_out)} tensors ({some_names(left_out)})")
    if described.tied and weights.places[described.naming.head] == weights.places[described.naming.embedding]:
        notes.append("the model is tied: the head starts as a copy of the embedding")
    return notes


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copy a tokenizer's files. Raises: UserError where one that every reader needs is missing."""
    for name in TOKENIZER_FILES:
        if not (source / name).is_file():
            raise UserError(f"no {name} in {source}", "a Hugging Face tokenizer folder", "copy the whole folder")
    for name in (*TOKENIZER_FILES, *OPTIONAL_TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def exported_code_files(vision: bool = False) -> list[Path]:
    """The Python files that travel with a checkpoint; with `vision` those of a model with a vision tower."""
    files = sorted(path for path in MODEL_FILES.glob("*.py") if path.name != "__init__.py")
    return [path for path in files if vision or not path.stem.endswith("_vlm")]
