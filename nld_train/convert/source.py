"""An output folder as conversion sees it: the weights of one step, the network's shape, ids and tokenizer.

`nld train` writes run.json and leaves the tokenizer where the recipe names it; an import has no run, so it keeps the
ids in import.json and a copy of the tokenizer beside it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from nld_train.config import ModelConfig, RunConfig, require
from nld_train.convert.config_json import SpecialTokenIds
from nld_train.convert.run_paths import locate_named_path
from nld_train.convert.torch_dist import StoredWeights
from nld_train.convert.weight_table import check_megatron_shapes
from nld_train.data.manifest import end_of_turn_id, manifest_path, parse_blend
from nld_train.data.tokenizer import TextTokenizer, begin_of_text_id, end_of_document_id, load_tokenizer
from nld_train.fields import from_tree
from nld_train.json_file import read_json_object
from nld_train.run_folder.checkpoints import check_checkpoint_contents, step_to_read
from nld_train.run_folder.frozen import read_frozen_model, read_frozen_vision, read_run_if_any
from nld_train.run_folder.paths import IMPORT, TOKENIZER, TRAINED_OR_IMPORTED, step_folder
from nld_train.vision_config import VisionConfig


@dataclass(frozen=True)
class CheckpointSource:
    """One checkpoint of an output folder, checked: its weights are those of the model."""

    output: Path
    step: int
    model: ModelConfig
    weights: StoredWeights
    run: RunConfig | None  # None: an import
    vision: VisionConfig | None = None  # None: a text model, or a tower that is left out

    @property
    def trained_on_chat(self) -> bool:
        """Whether the run's rows were conversations; an import does not know, but keeps the ids of its source."""
        return self.run is not None and self.run.data.chat


def open_checkpoint_source(
    output: Path, step: int | None = None, run: RunConfig | None = None, option: str = "--step "
) -> CheckpointSource:
    """Open the newest checkpoint, or that of a step. run: of this folder, where it was read before; option: how another
    step is asked for.

    Raises: UserError.
    """
    model, vision = read_frozen_model(output), read_frozen_vision(output)
    if run is None and not (output / IMPORT).is_file():
        run = read_run_if_any(output)
    require(
        run is None or run.sampler is None,
        f"{output} is a sampler's run, which holds no model",
        "the run of a model",
        f"`nld convert sampler {output} --to FOLDER` puts it beside an export of its model",
    )
    chosen = step_to_read(output, step, option)
    folder = step_folder(output, chosen)
    check_checkpoint_contents(folder)
    weights = StoredWeights(folder)
    check_megatron_shapes(str(folder), weights.shapes, model, vision)
    return CheckpointSource(output, chosen, model, weights, run, vision)


def open_source_tokenizer(source: CheckpointSource, given: Path | None) -> TextTokenizer:
    """The tokenizer of the model: `given`, or the import's copy, or the one that the run names.

    Raises: UserError where it is missing, or its vocabulary is larger than the model's.
    """
    folder = given or source.output / TOKENIZER
    if given is None and source.run is not None:
        folder = locate_named_path(source.output, source.run, source.run.data.tokenizer)
    tokenizer = load_tokenizer(folder)
    check_vocabulary_size(tokenizer, source.model.vocab_size)
    return tokenizer


def check_vocabulary_size(tokenizer: TextTokenizer, vocab_size: int) -> None:
    """Raises: UserError where the tokenizer has ids that the model lacks. A model may have more: it was padded."""
    require(
        tokenizer.vocab_size <= vocab_size,
        f"{tokenizer.folder} has a vocabulary of {tokenizer.vocab_size:,}",
        f"at most the model's {vocab_size:,}",
        "give the tokenizer that the model was trained with",
    )


def read_output_token_ids(source: CheckpointSource, tokenizer: TextTokenizer, chat: bool) -> SpecialTokenIds:
    """Ids and block size. `chat`: generation ends with a turn, not with a document. Raises: UserError."""
    run = source.run
    if run is None:
        imported = read_json_object(source.output / IMPORT, TRAINED_OR_IMPORTED)
        ids = from_tree(SpecialTokenIds, imported.get("traits"), "traits.")
        ids = replace(ids, eos_token_id=template_end(tokenizer)) if chat else ids
    else:
        end = turn_end(run, tokenizer) if chat else end_of_document_id(tokenizer)
        bos, diffusion = begin_of_text_id(tokenizer), run.diffusion
        ids = SpecialTokenIds(bos, end, diffusion.mask_token_id, diffusion.block_size)
    ids.check(source.model.vocab_size)
    return ids


def turn_end(run: RunConfig, tokenizer: TextTokenizer) -> int:
    """The token with which a run's answers end: that of its chat files, or, where these are not here, that of the
    template. Raises: UserError."""
    prefixes = [prefix for _, prefix in parse_blend(run.data.blend) if manifest_path(prefix).is_file()]
    found = end_of_turn_id(prefixes) if run.data.chat else None
    return template_end(tokenizer) if found is None else found


def template_end(tokenizer: TextTokenizer) -> int:
    """The token with which the tokenizer's chat template ends answers. Raises: UserError."""
    from nld_train.data.chat_encoder import load_chat_encoder

    return load_chat_encoder(tokenizer, thinking=False).end_mark()
