"""Open a checkpoint folder for decoding, or say in one line why it cannot be opened."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig

from nld_train.convert.adapter import StoredAdapter, attach_adapter
from nld_train.convert.config_json import read_folder_config
from nld_train.convert.hf_folder import HFWeights
from nld_train.convert.import_checkpoint import require_finite
from nld_train.convert.weight_table import Shape, check_stored_tensors
from nld_train.data.tokenizer import TextTokenizer, load_tokenizer, one_line
from nld_train.decode.run import user_errors
from nld_train.errors import UserError, require
from nld_train.hf.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from nld_train.hf.configuration_nemotron_labs_diffusion_vlm import NemotronLabsDiffusionVLMConfig
from nld_train.hf.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.hf.modeling_nemotron_labs_diffusion_vlm import NemotronLabsDiffusionVLMModel
from nld_train.json_file import read_json_object

# The classes by the name that config.json has for them, and what reads their configuration.
MODEL_CLASSES: dict[str, tuple[type[NemotronLabsDiffusionModel], type[NemotronLabsDiffusionConfig]]] = {
    NemotronLabsDiffusionModel.__name__: (NemotronLabsDiffusionModel, NemotronLabsDiffusionConfig),
    NemotronLabsDiffusionVLMModel.__name__: (NemotronLabsDiffusionVLMModel, NemotronLabsDiffusionVLMConfig),
}


def load_model(folder: Path, dtype: torch.dtype | None, device: torch.device) -> NemotronLabsDiffusionModel:
    """Load the model of a folder. dtype: of its weights; None: the dtype in its configuration.

    The project's own code is run, never the code in the folder.
    Raises: UserError where a file is missing, is truncated or belongs to another model.
    """
    config = load_model_config(folder)
    check_stored_tensors(str(folder), HFWeights(folder).shapes, expected_shapes(config), "its config.json")
    chosen = config.dtype if dtype is None else dtype
    # Its own settings of generation are those of transformers' loops, which none of our modes runs.
    model = model_class(config).from_pretrained(
        folder, config=config, dtype=chosen, generation_config=GenerationConfig()
    )
    model.to(device)  # type: ignore[arg-type]
    for name, weight in model.state_dict().items():  # one reading of the memory, far below the time of the load
        require_finite(weight, name, folder)
    return model


def load_drafter_adapter(model: NemotronLabsDiffusionModel, base: Path, folder: Path) -> None:
    """Put a drafter's adapter on the model of the folder `base`, in place and switched off.

    Linear self-speculation turns the adapter on while it drafts; no other mode uses it.
    folder: linear_spec_lora/ or the folder that holds it. Raises: UserError where the adapter belongs to another model.
    """
    StoredAdapter(folder, read_folder_config(base).model).check_numbers()
    attach_adapter(model, folder)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.enable_adapters(False)  # type: ignore[operator]


def load_model_config(folder: Path) -> NemotronLabsDiffusionConfig:
    """Read the configuration of a folder. Raises: UserError where it is missing or describes another architecture."""
    content = read_json_object(folder / "config.json", "a checkpoint folder of `nld convert export`")
    found = content.get("architectures")
    if not isinstance(found, list) or len(found) != 1 or found[0] not in MODEL_CLASSES:
        allowed = " or ".join(f"[{name!r}]" for name in MODEL_CLASSES)
        raise UserError(f"{folder} holds {found}", allowed, "give a folder of `nld convert export`")
    read_folder_config(folder)
    positions = content.get("max_position_embeddings")
    known = type(positions) is int and positions > 0
    require(known, f"{folder / 'config.json'}: max_position_embeddings={positions!r}", "a whole number", "correct it")
    try:
        with user_errors():
            return MODEL_CLASSES[found[0]][1](**content)
    except (TypeError, ValueError, AttributeError, KeyError, StrictDataclassError) as error:  # transformers' own checks
        got = f"{folder / 'config.json'}: {one_line(error)}"
        raise UserError(got, "a configuration as `nld convert export` writes it", "copy it again") from error


def expected_shapes(config: NemotronLabsDiffusionConfig) -> dict[str, Shape]:
    """Name -> shape, for every tensor of the model that a configuration describes."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in model_class(config)(config).state_dict().items()}


def model_class(config: NemotronLabsDiffusionConfig) -> type[NemotronLabsDiffusionModel]:
    """The class of the model that a configuration describes."""
    return next(model for model, described in MODEL_CLASSES.values() if described is type(config))


def load_text_tokenizer(folder: Path, vocab_size: int) -> TextTokenizer:
    """Load the tokenizer of a folder. Raises: UserError where it has ids that the model of `vocab_size` lacks."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{folder / 'tokenizer.json'} with a vocabulary of {tokenizer.vocab_size}",
            f"at most the model's {vocab_size}",
            "put the model's own tokenizer into the folder",
        )
    return tokenizer


def token_text(tokenizer: TextTokenizer) -> Callable[[Sequence[int]], str]:
    """The function from token ids to their text."""
    return lambda ids: tokenizer.decode(np.array(ids, dtype=np.int64))


def draw_text_only(model: NemotronLabsDiffusionModel, tokenizer: TextTokenizer) -> None:
    """Let the model never predict an id that the tokenizer has no token for, such as those of a padded vocabulary, nor
    a token of images: an answer holds none, and it was never trained to."""
    taken = set(tokenizer.library.get_vocab().values())
    if isinstance(model.config, NemotronLabsDiffusionVLMConfig):
        config = model.config
        taken -= {config.image_token_id, config.image_break_token_id, config.image_end_token_id}
    empty = torch.tensor([number for number in range(model.config.vocab_size) if number not in taken])
    if empty.numel():

        def without_empty(module: torch.nn.Module, given: object, logits: torch.Tensor) -> torch.Tensor:
            return logits.index_fill(-1, empty.to(logits.device), -torch.inf)

        model.diffusion_head.register_forward_hook(without_empty)
