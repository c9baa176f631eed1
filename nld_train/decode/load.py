"""Opens a checkpoint folder for decoding, and says in one line what is wrong with it where it cannot be opened."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nld_train.data.tokenizer import TextTokenizer, load_tokenizer
from nld_train.decode.run import user_errors
from nld_train.errors import UserError
from nld_train.hf.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from nld_train.hf.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel

ARCHITECTURE = NemotronLabsDiffusionModel.__name__
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMED = 3  # tensors named in an error
Shape = tuple[int, ...]


def load_model(folder: Path, dtype: torch.dtype | None, device: torch.device) -> NemotronLabsDiffusionModel:
    """The model of a folder, in the dtype of its configuration unless another is given.

    The code is ours, not that in the folder: nothing that lies there is run.
    Raises: UserError where a file is missing, truncated or of another model.
    """
    config = load_config(folder)
    check_shapes(folder, stored_shapes(folder), expected_shapes(config))
    chosen = config.dtype if dtype is None else dtype
    model = NemotronLabsDiffusionModel.from_pretrained(folder, config=config, dtype=chosen)
    return model.to(device)  # type: ignore[arg-type]


def load_config(folder: Path) -> NemotronLabsDiffusionConfig:
    """The configuration of a folder. Raises: UserError."""
    content = read_object(folder / "config.json", "a checkpoint folder of `nld convert export`")
    found = content.get("architectures")
    if found != [ARCHITECTURE]:
        raise UserError(f"{folder} holds {found}", f"[{ARCHITECTURE!r}]", "give a folder of `nld convert export`")
    with user_errors():
        return NemotronLabsDiffusionConfig(**content)


def read_object(path: Path, allowed: str) -> dict[str, Any]:
    """A JSON file that holds an object. Raises: UserError."""
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}", allowed, "check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "a JSON object", "copy the file again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object", "a JSON object", "copy the file again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that its index names."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    names = read_object(folder / INDEX, "an index of safetensors files")["weight_map"].values()
    return [folder / name for name in sorted(set(names))]


def stored_shapes(folder: Path) -> dict[str, Shape]:
    """Name and shape of every stored tensor. Raises: UserError for a missing or truncated file."""
    return {name: shape for path in weight_files(folder) for name, shape in _file_shapes(path)}


def _file_shapes(path: Path) -> Iterator[tuple[str, Shape]]:
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}", f"{WEIGHTS}, or the files of {INDEX}", "copy it again")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (the file is no mapping)
                yield name, tuple(file.get_slice(name).get_shape())
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read: {error}", "a whole safetensors file", "copy it again") from error


def expected_shapes(config: NemotronLabsDiffusionConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of the model that a configuration describes."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in NemotronLabsDiffusionModel(config).state_dict().items()}


def check_shapes(folder: Path, stored: dict[str, Shape], expected: dict[str, Shape]) -> None:
    """Raises: UserError unless exactly the expected tensors are stored."""
    wrong = {name for name in stored.keys() & expected.keys() if stored[name] != expected[name]}
    for word, names in (
        ("lacks", expected.keys() - stored.keys()),
        ("has unknown", stored.keys() - expected.keys()),
        ("has other shapes than config.json says:", wrong),
    ):
        if names:
            listed = ", ".join(sorted(names)[:NAMED]) + (
                f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            )
            raise UserError(
                f"{folder} {word} {listed}", f"the {len(expected)} tensors of its config.json", "export again"
            )


def load_text_tokenizer(folder: Path, vocab_size: int) -> TextTokenizer:
    """The tokenizer of a folder. Raises: UserError where its vocabulary is not the model's."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{folder / 'tokenizer.json'} with a vocabulary of {tokenizer.vocab_size}",
            f"the model's {vocab_size}",
            "put the model's own tokenizer into the folder",
        )
    return tokenizer
