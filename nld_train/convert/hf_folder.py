"""A Hugging Face checkpoint folder: its weights behind one set of names, and what lies beside them."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from nld_train.convert.config_json import FolderConfig, read_folder_config
from nld_train.convert.safetensors_file import SafetensorsFile
from nld_train.convert.weight_table import Shape, check_hf_shapes
from nld_train.errors import UserError
from nld_train.json_file import read_json_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
OPTIONAL_TOKENIZER_FILES = ("special_tokens_map.json", "chat_template.jinja")
MODEL_FILES = Path(__file__).resolve().parents[1] / "hf"


class HFWeights:
    """The tensors of a folder, whichever files they lie in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = [SafetensorsFile(path) for path in safetensors_files(folder)]
        self.places = {name: (file, name) for file in files for name in file.entries}

    def tie(self, name: str, stored: str) -> None:
        """Let a tensor answer to a second name, where the file holds none of that name."""
        if stored in self.places:
            self.places.setdefault(name, self.places[stored])

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: file.entries[stored].shape for name, (file, stored) in self.places.items()}

    def dtype(self, name: str) -> torch.dtype:
        file, stored = self.places[name]
        return file.entries[stored].dtype

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """Rows first..last (None: the end) of a tensor, as stored."""
        file, stored = self.places[name]
        return file.read(stored, first, last)


def safetensors_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that its index names. Raises: UserError."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    names = read_json_object(folder / INDEX, "an index of safetensors files")["weight_map"].values()
    return [folder / name for name in sorted(set(names))]


def open_hf_folder(folder: Path) -> tuple[FolderConfig, HFWeights]:
    """Open a folder of the NLD format or of Ministral-3, its tensors checked against its config.json.

    Where a tied Ministral-3 stores no head, the embedding answers to the head's name.
    Raises: UserError.
    """
    described = read_folder_config(folder)
    weights = HFWeights(folder)
    if described.tied:
        weights.tie(described.naming.head, described.naming.embedding)
    check_hf_shapes(str(folder), weights.shapes, described.model, described.naming)
    return described, weights


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copy a tokenizer's files. Raises: UserError where one that every reader needs is missing."""
    for name in TOKENIZER_FILES:
        if not (source / name).is_file():
            raise UserError(f"no {name} in {source}", "a Hugging Face tokenizer folder", "copy the whole folder")
    for name in (*TOKENIZER_FILES, *OPTIONAL_TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def exported_code_files() -> list[Path]:
    """The Python files that travel with a checkpoint."""
    return sorted(path for path in MODEL_FILES.glob("*.py") if path.name != "__init__.py")
