"""What is evaluated: a Hugging Face folder, or the output folder of a run, as the same model object."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nld_train.convert.config_json import make_config_json
from nld_train.convert.export import iter_hf_tensors
from nld_train.convert.source import CheckpointSource, open_checkpoint_source, open_source_tokenizer
from nld_train.convert.source import read_output_token_ids as read_ids
from nld_train.convert.weight_table import NLD, weight_mappings
from nld_train.data.tokenizer import TextTokenizer
from nld_train.decode.load import draw_text_only, load_drafter_adapter, load_model, load_text_tokenizer
from nld_train.errors import require
from nld_train.hf.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from nld_train.hf.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.run_folder.paths import IMPORT, RUN

EITHER = "a folder of `nld convert export`, or the output folder of `nld train`"


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


def open_evaluated_model(choice: ModelChoice) -> EvaluatedModel:
    """Load a Hugging Face folder or a run's checkpoint. The model never predicts an id without a token.

    Raises: UserError where the folder is neither, lacks its weights, or the adapter belongs to another model.
    """
    folder = choice.folder
    require(folder.is_dir(), f"no folder {folder}", EITHER, "check the path")
    if any((folder / name).is_file() for name in (RUN, IMPORT)):
        found = _open_run(choice)
    else:
        require(choice.step is None, f"--step {choice.step} of {folder}", "runs alone have steps", "leave it out")
        model = load_model(folder, choice.dtype, choice.device)
        found = EvaluatedModel(str(folder), model, load_text_tokenizer(folder, model.config.vocab_size))
    if choice.adapter is not None:
        load_drafter_adapter(found.model, folder, choice.adapter)
    draw_text_only(found.model, found.tokenizer)
    return found


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


def token_text(tokenizer: TextTokenizer) -> Callable[[Sequence[int]], str]:
    """The function from token ids to their text."""
    import numpy as np

    return lambda ids: tokenizer.decode(np.array(ids, dtype=np.int64))
