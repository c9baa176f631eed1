"""The model of a Hugging Face folder, run from the Python files that travel in it."""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nld_train.config import ModelConfig
from nld_train.convert.adapter import attach_adapter
from nld_train.convert.config_json import ARCHITECTURE, VLM_ARCHITECTURE, FolderConfig
from nld_train.convert.hf_folder import HFWeights, exported_code_files
from nld_train.convert.reference_network import ProbeRow, consecutive_ranges
from nld_train.convert.weight_table import EMBEDDING, HEAD, NLD, parameter_count, weight_mappings
from nld_train.errors import UserError
from nld_train.vision_config import VisionConfig

PACKAGE = "nld_exported_model"
MODEL_MODULE, CONFIG_MODULE = "modeling_nemotron_labs_diffusion", "configuration_nemotron_labs_diffusion"
CONFIG_CLASS, VLM_CONFIG_CLASS = "NemotronLabsDiffusionConfig", "NemotronLabsDiffusionVLMConfig"
MEMORY = Path("/proc/meminfo")


class ExportedModel:
    """The folder's model in float32 on the CPU, with its first layers, and all of a vision tower."""

    def __init__(
        self, folder: Path, described: FolderConfig, weights: HFWeights, layers: int, ids: Tensor | None = None
    ) -> None:
        """ids: ascending; those that rows are made of and whose logits are computed; None: all of the vocabulary.

        Raises: UserError where a Python file is not the one that this version writes.
        """
        vision = described.vision is not None
        check_exported_code(folder, vision)
        with import_exported_code(folder, vision) as (modeling, configuration):
            config_class = vars(configuration)[VLM_CONFIG_CLASS if vision else CONFIG_CLASS]
            config = config_class(**described.content | {"num_hidden_layers": layers})
            with torch.device("meta"):
                self.model = vars(modeling)[VLM_ARCHITECTURE if vision else ARCHITECTURE](config).eval()
            self.decoder = sys.modules[type(self.model.encoder.layers[0]).__module__]
        if vision:  # its frequencies are computed and not stored, so that they are no part of what is loaded below
            tower = self.model.encoder.vision_tower
            tower.patch_positional_embedding = type(tower.patch_positional_embedding)(config.vision_config)
        self.prefill: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext  # around the past of a block
        self.ids = torch.arange(config.vocab_size) if ids is None else ids
        with torch.device("meta"):
            self.model.encoder.embed_tokens = torch.nn.Embedding(len(self.ids), config.hidden_size)
            self.model.diffusion_head = torch.nn.Linear(config.hidden_size, len(self.ids), bias=False)
        self.model.load_state_dict(read_float_weights(self.model, weights, self.ids), assign=True)
        self.config = config

    def adapt(self, folder: Path) -> None:
        """Draft with a folder's adapter from now on; the past of a block is still the base model's."""
        self.prefill = attach_adapter(self.model, folder).disable_adapter

    def inverse_frequencies(self) -> Tensor:
        """Rotary frequencies as the model computes them, [D / 2]."""
        rope: dict[str, Any] = self.config.rope_parameters
        return vars(self.decoder)["inverse_frequencies"](rope, self.config.head_dim, torch.device("cpu"))

    @torch.no_grad()
    def ar_logits(self, row: ProbeRow) -> Tensor:
        """Causal logits of the clean row, [L, len(ids)]."""
        return self._forward(row.clean, row.start, use_causal_mask=True).logits[0]

    @torch.no_grad()
    def block_logits(self, row: ProbeRow) -> Tensor:
        """Logits of every noisy block over the cached clean blocks before it, [L, len(ids)]."""
        found = []
        for first in range(0, len(row.noisy), row.block_size):
            cache = None
            if first > 0:
                with self.prefill():
                    past = self._forward(
                        row.clean[:first], row.start, use_causal_mask=True, use_cache=True, logits_to_keep=1
                    )
                cache = past.past_key_values
            block = row.noisy[first : first + row.block_size]
            seen = self._forward(block, row.start + first, use_causal_mask=False, past_key_values=cache)
            found.append(seen.logits[0])
        return torch.cat(found)

    def _forward(self, ids: Tensor, start: int, **how: Any) -> Any:
        places = torch.arange(start, start + len(ids))
        return self.model(torch.searchsorted(self.ids, ids)[None], position_ids=places[None], **how)


def read_float_weights(model: torch.nn.Module, weights: HFWeights, ids: Tensor) -> dict[str, Tensor]:
    """The folder's tensors of a model in float32, by their names. Of those with a row for every id, which the model has
    for `ids` alone, only those rows are read."""
    state = {}
    for name, wanted in model.state_dict().items():
        if wanted.shape == weights.shapes[name]:
            state[name] = weights.read(name).float()
        else:
            state[name] = torch.cat([weights.read(name, *rows).float() for rows in consecutive_ranges(ids)])
    return state


def check_exported_code(folder: Path, vision: bool = False) -> None:
    """Raises: UserError unless the folder's Python files are this version's: foreign code is not run."""
    for ours in exported_code_files(vision):
        theirs = folder / ours.name
        if not theirs.is_file() or theirs.read_bytes() != ours.read_bytes():
            raise UserError(
                f"{theirs} is {'another' if theirs.is_file() else 'missing'}",
                "the file that this version of nld-train exports",
                "export again, or verify with the version that wrote it",
            )


@contextlib.contextmanager
def import_exported_code(folder: Path, vision: bool = False) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The folder's modeling and configuration modules, of text or with vision, as a package that exists only here.

    transformers' own loader would copy the files into the user's cache first.
    """
    ending = "_vlm" if vision else ""
    spec = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        yield (
            importlib.import_module(f"{PACKAGE}.{MODEL_MODULE}{ending}"),
            importlib.import_module(f"{PACKAGE}.{CONFIG_MODULE}{ending}"),
        )
    finally:
        sys.dont_write_bytecode = writes_bytecode
        for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[name]


def fitting_layers(model: ModelConfig, vision: VisionConfig | None = None) -> int:
    """How many layers fit, in float32 and in half of the memory that is free, beside embedding, head and vision tower.

    Raises: UserError where not even one does.
    """
    total = parameter_count(model)
    vocabulary = sum(
        unit.shape[0] * unit.shape[1] for unit in weight_mappings(model, NLD) if unit.name in (EMBEDDING, HEAD)
    )
    layer = (total - vocabulary) // model.layers
    beside = vocabulary + parameter_count(model, vision) - total
    room = available_memory() // 2 // torch.float32.itemsize
    if room < beside + layer:
        raise UserError(
            f"{available_memory() / 1e9:.1f} GB of free memory",
            f"{2 * torch.float32.itemsize * (beside + layer) / 1e9:.1f} GB to run one layer of this model",
            "verify on a larger machine, or pass --no-verify",
        )
    return min(model.layers, (room - beside) // layer)


def available_memory() -> int:
    """Memory that Linux would give a new process."""
    lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
