"""What is evaluated: a Hugging Face folder, or the output folder of a run, as the same model object."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from nld_train.convert.adapter import find_adapter
from nld_train.convert.config_json import make_config_json
from nld_train.convert.export import iter_hf_tensors
from nld_train.convert.hf_folder import OPTIONAL_TOKENIZER_FILES, TOKENIZER_FILES, safetensors_files
from nld_train.convert.source import CheckpointSource, open_checkpoint_source, open_source_tokenizer
from nld_train.convert.source import read_output_token_ids as read_ids
from nld_train.convert.weight_table import NLD, weight_mappings
from nld_train.data.tokenizer import TextTokenizer
from nld_train.decode.load import draw_text_only, load_drafter_adapter, load_model, load_text_tokenizer
from nld_train.errors import require
from nld_train.hf.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from nld_train.hf.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.hf.trained_sampler_nemotron_labs_diffusion import SAMPLER_CONFIG, SAMPLER_FOLDER, SAMPLER_WEIGHTS
from nld_train.peft_names import CONFIG, WEIGHTS
from nld_train.run_folder.checkpoints import MANIFEST, step_to_read
from nld_train.run_folder.paths import IMPORT, RUN, step_folder

EITHER = "a folder of `nld convert export`, or the output folder of `nld train`"
SAMPLES, SAMPLE_BYTES = 64, 1 << 14  # of every file of weights, for its digest


@dataclass(frozen=True)
class EvaluatedModel:
    """A model on its device, its tokenizer, and what to call it."""

    name: str  # e.g. "out/demo/sft, step 80"
    model: NemotronLabsDiffusionModel
    tokenizer: TextTokenizer


@dataclass(frozen=True)
class ModelChoice:
    """Which model is evaluated, as the command line says it."""

    folder: Path
    step: int | None = None  # of a run; None: its newest checkpoint
    adapter: Path | None = None  # a drafter
    dtype: torch.dtype | None = None  # None: that of the folder
    device: torch.device = torch.device("cpu")


def open_evaluated_model(choice: ModelChoice, with_adapter: bool = True) -> EvaluatedModel:
    """Load a Hugging Face folder or a run's checkpoint. The model never predicts an id without a token.

    with_adapter: whether the adapter that the choice names is put on already.

    Raises: UserError where the folder is neither, lacks its weights, or the adapter belongs to another model.
    """
    disable_progress_bar()  # of a load; what takes long here has a bar of its own
    folder = choice.folder
    if _is_run(choice):
        found = _open_run(choice)
    else:
        model = load_model(folder, choice.dtype, choice.device)
        found = EvaluatedModel(str(folder), model, load_text_tokenizer(folder, model.config.vocab_size))
    if choice.adapter is not None and with_adapter:
        load_drafter_adapter(found.model, folder, choice.adapter)
    draw_text_only(found.model, found.tokenizer)
    return found


def _is_run(choice: ModelChoice) -> bool:
    """Whether the folder is one of a run or an import, and not an export. Raises: UserError."""
    folder = choice.folder
    require(folder.is_dir(), f"no folder {folder}", EITHER, "check the path")
    run = any((folder / name).is_file() for name in (RUN, IMPORT))
    fine = run or choice.step is None
    require(fine, f"--step {choice.step} of {folder}", "runs alone have steps", "leave it out")
    return run


def model_identity(choice: ModelChoice) -> dict[str, Any]:
    """What says which model is evaluated, JSON values: the last two names of its folder's path, the step, the dtype
    asked for, and digests of its weights and its adapter's.

    It is cheap: of weights the sizes and SAMPLES places of every file are read; of a run's checkpoint the manifest,
    which lists the checksums of all its files. Raises: UserError where the model is not there.
    """
    folder, step = choice.folder, choice.step
    if _is_run(choice):
        step = step_to_read(folder, step, "--step ")
        weights = sample_digest([step_folder(folder, step) / MANIFEST])
    else:
        beside = [folder / name for name in OPTIONAL_TOKENIZER_FILES if (folder / name).is_file()]
        read = [folder / name for name in ("config.json", *TOKENIZER_FILES)]
        weights = sample_digest([*read, *beside, *safetensors_files(folder)])
    adapter = None if choice.adapter is None else find_adapter(choice.adapter)
    return {
        "model": "/".join(folder.resolve().parts[-2:]),
        "step": step,
        "weights": weights,
        "adapter": None if adapter is None else sample_digest([adapter / CONFIG, adapter / WEIGHTS]),
        "dtype": None if choice.dtype is None else str(choice.dtype).removeprefix("torch."),
    }


def sampler_identity(choice: ModelChoice) -> str:
    """A digest of the trained sampler's files. Raises: UserError where the folder is a run's, or has no sampler."""
    folder = choice.folder
    allowed = "a folder of `nld convert export`, beside whose weights stands sampler/"
    require(not _is_run(choice), f"--sampler for the run {folder}", allowed, "export the run and a sampler first")
    files = [folder / SAMPLER_FOLDER / name for name in (SAMPLER_CONFIG, SAMPLER_WEIGHTS)]
    for path in files:
        require(path.is_file(), f"no {SAMPLER_FOLDER}/{path.name} in {folder}", allowed, "leave --sampler out")
    return sample_digest(files)


def sample_digest(files: Sequence[Path]) -> str:
    """SHA-256 of the names and sizes of files, and of SAMPLES evenly spread pieces of each, the first and the last
    bytes among them. Raises: UserError where a file is missing."""
    digest = hashlib.sha256()
    for path in files:
        require(path.is_file(), f"no file {path}", EITHER, "copy it again, or check the path")
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(SAMPLES):
                file.seek(max(size - SAMPLE_BYTES, 0) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _open_run(choice: ModelChoice) -> EvaluatedModel:
    """The model of a run's checkpoint, in memory alone: no folder is written. Raises: UserError."""
    source = open_checkpoint_source(choice.folder, choice.step)
    require(choice.adapter is None, f"--adapter for the run {choice.folder}", "a folder of `nld convert export`",
            "export the run first")  # fmt: skip
    tokenizer = open_source_tokenizer(source, None)
    model = model_of_checkpoint(source, tokenizer, choice.dtype or torch.bfloat16).to(choice.device)  # type: ignore[arg-type]
    return EvaluatedModel(f"{choice.folder}, step {source.step}", model, tokenizer)


def model_of_checkpoint(
    source: CheckpointSource, tokenizer: TextTokenizer, dtype: torch.dtype
) -> NemotronLabsDiffusionModel:
    """The model that an export of this checkpoint holds, its weights rounded to `dtype`. Raises: UserError."""
    traits = read_ids(source, tokenizer, chat=source.trained_on_chat)
    config = NemotronLabsDiffusionConfig(**make_config_json(source.model, traits, dtype))
    with torch.device("meta"):
        model = NemotronLabsDiffusionModel(config)
    state: dict[str, torch.Tensor] = {}
    for unit in weight_mappings(source.model, NLD):
        tensors = list(iter_hf_tensors(source.weights, [unit], dtype))
        whole = tensors if len(unit.parts) > 1 else [torch.cat(tensors)]
        state |= {part.name: tensor for part, tensor in zip(unit.parts, whole, strict=True)}
    model.load_state_dict(state, assign=True)
    return model.eval()
