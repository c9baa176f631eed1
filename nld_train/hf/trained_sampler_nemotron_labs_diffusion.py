"""The trained sampler beside the weights of a model: its files, and what it says of a block that is being denoised.

`sampler/config.json` says its format, the sizes of its network and what it is told of a position;
`sampler/model.safetensors` holds the network's tensors under its own names, and `coordinates`, the compressed embedding
of every token. This file travels with every export.

Letters: B rows, n positions of a block, V vocabulary size, P numbers of a compressed embedding.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers.utils import cached_file

from .configuration_nemotron_labs_diffusion import InputError, require_input
from .sampler_features_nemotron_labs_diffusion import (
    STATISTICS,
    committed_features,
    describe_distributions,
    feature_count,
    position_features,
)
from .sampler_network_nemotron_labs_diffusion import NetworkShape, SamplerNetwork

SAMPLER_FOLDER, SAMPLER_CONFIG, SAMPLER_WEIGHTS = "sampler", "config.json", "model.safetensors"
SAMPLER_FORMAT, SAMPLER_VERSION = "nld_trained_sampler", 1
COORDINATES = "coordinates"
SIZES = ("features", "layers", "width", "ffn", "heads")
SWITCHES = ("attention", "top_embedding")
MOST_LAYERS = 1000  # a network is built to be compared with its file, and a layer costs time even without memory
POSITIONS = 64  # whose distributions are described at a time: 32 MiB in float32 for 131,072 tokens, ten times over
WHOLE = "the sampler/ of an export, whole"
AGAIN = "copy the folder again, or export again"


class TrainedSampler:
    """Judges the masked positions of blocks. Its weights stay in float32, on the device of what it was given last."""

    def __init__(self, shape: NetworkShape, network: SamplerNetwork, coordinates: Tensor) -> None:
        """coordinates: [V, P] float16."""
        self.shape, self.network, self.coordinates = shape, network.float().eval(), coordinates

    @torch.no_grad()
    def judge_block(self, logits: Tensor, ids: Tensor, masked: Tensor, present: Tensor | None = None) -> Tensor:
        """How probable it is that the most probable token of a masked position is the one that will stand there.

        logits: [B, n, V]; tokens at -inf take no part. ids: [B, n], read where not masked: what is committed. masked:
        [B, n] bool. present: [B, n] bool, False for padding; None: there is none.
        Returns: [B, n] float32 on the device of the logits; of positions that are not masked it means nothing.
        """
        device = logits.device
        self.network.to(device)
        self.coordinates = self.coordinates.to(device)
        features = committed_features(self.coordinates, ids.to(device))
        for places in masked.nonzero().to(device).split(POSITIONS):
            row, place = places.unbind(1)
            seen = describe_distributions(logits[row, place])
            # In training the statistics have passed through the float16 of stored trajectories.
            features[row, place] = position_features(self.coordinates, seen.top, seen.statistics.half())
        with torch.autocast(device.type, enabled=False):
            said = self.network(features, masked.to(device), None if present is None else present.to(device))
        return said.sigmoid()


def save_trained_sampler(
    folder: Path,
    shape: NetworkShape,
    state: Mapping[str, Tensor],
    coordinates: Tensor,
    model_weights: str | None = None,
) -> None:
    """Write a sampler's two files into an empty folder, the configuration last.

    state: of SamplerNetwork. coordinates: [V, P] float16. model_weights: what names the weights that it was trained
    with, for people. Raises: InputError where the folder is missing or not empty.
    """
    empty = folder.is_dir() and not any(folder.iterdir())
    require_input(empty, f"{folder} for a sampler", "an empty folder", "make it, or name another")
    tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in state.items()}
    tensors[COORDINATES] = coordinates.detach().cpu().contiguous()
    vocab_size, components = coordinates.shape
    content = {
        "format": SAMPLER_FORMAT,
        "version": SAMPLER_VERSION,
        **{name: vars(shape)[name] for name in (*SIZES, *SWITCHES)},
        "statistics": list(STATISTICS),
        "components": components,
        "vocab_size": vocab_size,
        "model_weights": model_weights,
    }
    check_sampler_tensors(described_shape(content, str(folder), vocab_size), tensors, str(folder), content)
    written = json.dumps(content, indent=2) + "\n"
    # save_file would make a file that nobody else may read.
    files = {SAMPLER_WEIGHTS: save(tensors, metadata={"format": "pt"}), SAMPLER_CONFIG: written.encode()}
    for name, data in files.items():
        partial = folder / f".{name}.partial"
        partial.write_bytes(data)
        os.replace(partial, folder / name)


def load_trained_sampler(source: str | Path, vocab_size: int, revision: str | None = None) -> TrainedSampler:
    """The sampler of a Hugging Face folder, or of a repository's name. vocab_size: the model's. revision: of the
    repository. Raises: InputError, a ValueError of one line, where it is missing, damaged or another model's."""
    config, weights = (sampler_file(source, name, revision) for name in (SAMPLER_CONFIG, SAMPLER_WEIGHTS))
    try:
        content = json.loads(config.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{config} is not JSON", WHOLE, AGAIN) from error
    shape = described_shape(content, str(config), vocab_size)
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{weights} cannot be read: {str(error).splitlines()[0]}", WHOLE, AGAIN) from error
    check_sampler_tensors(shape, tensors, str(weights), content)
    coordinates = tensors.pop(COORDINATES)
    with torch.device("meta"):
        network = SamplerNetwork(shape)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return TrainedSampler(shape, network.requires_grad_(False), coordinates)


def sampler_file(source: str | Path, name: str, revision: str | None) -> Path:
    """A file of the sampler in a folder, or in a repository and its cache. Raises: InputError where there is none."""
    missing = InputError(
        f"no {SAMPLER_FOLDER}/{name} in {source}",
        "a model that has a trained sampler beside its weights",
        "export the sampler too, or decode without it",
    )
    if os.path.isdir(source):
        path = Path(source) / SAMPLER_FOLDER / name
        if not path.is_file():
            raise missing
        return path
    try:
        found = cached_file(str(source), name, subfolder=SAMPLER_FOLDER, revision=revision)
    except OSError as error:
        raise missing from error
    assert found is not None, "a missing file is an error"
    return Path(found)


def described_shape(content: Any, where: str, vocab_size: int) -> NetworkShape:
    """The sizes that a configuration describes. Raises: InputError where it is no sampler of this version for a model
    of `vocab_size` tokens."""
    named = isinstance(content, dict) and content.get("format") == SAMPLER_FORMAT
    require_input(named, f"{where} describes no trained sampler", f'"format": "{SAMPLER_FORMAT}"', AGAIN)
    found = {name: content.get(name) for name in ("version", "statistics", "vocab_size", "components")}
    numbers = {name: content.get(name) for name in SIZES} | {"components": found["components"]}
    for name, value in numbers.items():
        require_input(type(value) is int and value > 0, f"{where}: {name}={value!r}", "whole numbers above 0", AGAIN)
    switches = {name: content.get(name) for name in SWITCHES}
    for name, value in switches.items():
        require_input(type(value) is bool, f"{where}: {name}={value!r}", "true, false", AGAIN)
    wanted = {"version": SAMPLER_VERSION, "statistics": list(STATISTICS), "vocab_size": vocab_size}
    for name, value in wanted.items():
        fix = "use the version of the code that it was trained with" if name != "vocab_size" else "use its own model"
        require_input(found[name] == value, f"{where}: {name}={found[name]!r}", f"{value!r}", fix)
    features = feature_count(numbers["components"])
    require_input(
        numbers["features"] == features,
        f"{where}: features={numbers['features']} of components={numbers['components']}",
        f"{features}",
        AGAIN,
    )
    width, heads = numbers["width"], numbers["heads"]
    fits = width % 2 == 0 and width % heads == 0 and numbers["layers"] <= MOST_LAYERS
    got = f"{where}: width={width}, heads={heads}, layers={numbers['layers']}"
    require_input(fits, got, f"an even width that the heads divide, at most {MOST_LAYERS} layers", AGAIN)
    return NetworkShape(**{name: numbers[name] for name in SIZES}, **switches)


def check_sampler_tensors(
    shape: NetworkShape, tensors: Mapping[str, Tensor], where: str, content: Mapping[str, Any]
) -> None:
    """Raises: InputError unless the tensors are those of the described network, and numbers."""
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in SamplerNetwork(shape).state_dict().items()}
    wanted[COORDINATES] = (content["vocab_size"], content["components"])
    names = sorted(wanted.keys() ^ tensors.keys())
    require_input(not names, f"{where}: {names[:1]} is missing, or unknown", "the tensors of its configuration", AGAIN)
    for name, tensor in tensors.items():
        found = tuple(tensor.shape)
        require_input(found == wanted[name], f"{where}: {name} of shape {found}", f"{wanted[name]}", AGAIN)
        fits = tensor.dtype == torch.float16 if name == COORDINATES else tensor.is_floating_point()
        require_input(fits, f"{where}: {name} in {tensor.dtype}", f"floats, {COORDINATES} in float16", AGAIN)
        require_input(bool(tensor.isfinite().all()), f"{where}: {name} holds NaN or infinity", "numbers", AGAIN)
