"""The start checks: would this run start here? `nld train` makes them before it starts, and `nld doctor` and
`nld launch` make the same ones.

A check only reads. It refuses a run with a UserError, so every function here raises UserError.
"""

import os
from dataclasses import replace
from pathlib import Path

import torch

from nld_train.config import RunConfig, require
from nld_train.convert.adapter import StoredAdapter
from nld_train.convert.config_json import read_folder_config, with_folder_vision
from nld_train.data.chat_template import load_chat_template
from nld_train.data.identity import check_data_identity
from nld_train.data.manifest import Manifest, check_token_file_tokenizer, end_of_turn_id, parse_blend
from nld_train.data.run_rows import check_data_parts
from nld_train.data.tokenizer import TextTokenizer, begin_of_text_id, check_mask_id, end_of_document_id, load_tokenizer
from nld_train.data.trajectory_rows import check_trajectory_data
from nld_train.fields import leaf_values
from nld_train.fp8_recipes import check_fp8_device
from nld_train.json_file import read_json_object
from nld_train.objectives.choose import SECTION_OBJECTIVES, objective_of
from nld_train.objectives.contract import LoraSettings
from nld_train.peft_names import CONFIG, WEIGHTS
from nld_train.run_folder.checkpoints import (
    check_checkpoint_contents,
    checkpoint_steps,
    complete_steps,
    init_checkpoint,
)
from nld_train.run_folder.frozen import (
    check_same_model,
    check_same_vision,
    holds_no_model,
    model_record,
    read_frozen_run,
    read_run_if_any,
    setting_differences,
    vision_record,
)
from nld_train.run_folder.paths import MODEL, RUN, TRAINED_OR_IMPORTED, checkpoints_folder, is_hf_folder

# What a resumed run may not change: with other weights, rows or objective it would be another run.
FIXED_ON_RESUME = ("model", "diffusion", "data", "init", "init_step", "init_optimizer", *SECTION_OBJECTIVES)
FREE_OF_DATA = ("workers", "verify")  # of the data section: they make no difference to the rows
# Megatron's checkpoint holds these of the optimizer: it would refuse others in mid-start, or keep its own in silence.
FIXED_OPTIMIZER = tuple(f"optimizer.{name}" for name in ("lr", "min_lr", "weight_decay", "beta1", "beta2", "eps"))
FIXED_OPTIMIZER += ("parallel.distributed_optimizer",)


def check_ranks(run: RunConfig, nodes: int = 1) -> None:
    """Refuse more ranks than this machine, one of `nodes`, has GPUs or, without any, twice its cores; and FP8 where
    they cannot compute it."""
    ranks = run.parallel.world_size // nodes
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    room = gpus or 2 * len(os.sched_getaffinity(0))
    require(
        ranks <= room,
        f"{run.name} on {ranks} ranks",
        f"at most {room} on this machine ({gpus} GPUs)" if gpus else f"at most {room} on this machine (no GPU)",
        "give --nproc N, or train it on a cluster with `nld launch`",
    )
    check_fp8_device(run.train.fp8, torch.cuda.get_device_capability() if gpus else None)


def check_run_data(run: RunConfig) -> None:
    """Refuse token files that are missing or damaged, that are of another kind, tokenizer or vocabulary, or too small
    for a row of each part that is read; and what the export would refuse after training."""
    if run.sampler is not None:
        check_trajectory_data(run)
        return
    blend = parse_blend(run.data.blend)
    manifests = {}
    for _, prefix in blend:
        manifest = manifests[prefix] = check_token_file_tokenizer(prefix, run.data.tokenizer)
        _check_data_kind(prefix, manifest, run)
        check_data_parts(prefix, manifest, run)
        vocabulary = manifest.vocab_size
        require(
            vocabulary <= run.model.vocab_size,
            f"{prefix} has ids of a vocabulary of {vocabulary:,}, the model has {run.model.vocab_size:,}",
            "at most the model's vocabulary",
            "set model.vocab_size, or prepare the data with the model's tokenizer",
        )
    tokenizer = load_tokenizer(run.data.tokenizer)
    check_mask_id(tokenizer, run.diffusion.mask_token_id, "diffusion.mask_token_id")
    begin_of_text_id(tokenizer)
    if run.data.chat:
        end_of_turn_id(list(manifests))
        for prefix, manifest in manifests.items():
            _check_chat_template(prefix, manifest, tokenizer)
    else:
        end_of_document_id(tokenizer)


def _check_chat_template(prefix: str, manifest: Manifest, tokenizer: TextTokenizer) -> None:
    """Refuse conversations of another chat template than the tokenizer's, which the export would bring along."""
    chat = manifest.chat
    assert chat is not None, "its kind was checked"
    here = load_chat_template(tokenizer, chat.thinking)
    require(
        here.sha256 == chat.template_sha256,
        f"{prefix} was written with another chat template ({chat.template}) than {here.origin}",
        "the template that the export will have",
        "set data.tokenizer to the folder that it was made with, or run `nld data prepare-chat` again",
    )


def _check_data_kind(prefix: str, manifest: Manifest, run: RunConfig) -> None:
    """Refuse plain text where the run wants conversations, and the other way round."""
    holds, wanted = ("conversations" if chat else "plain text" for chat in (manifest.chat is not None, run.data.chat))
    require(
        holds == wanted,
        f"{prefix} holds {holds}, {run.name} has data.chat={run.data.chat}",
        f"files of {wanted} alone, made by `nld data {'prepare-chat' if run.data.chat else 'prepare'}`",
        "set data.chat and diffusion.document_mask, or name other files",
    )


def check_start(run: RunConfig) -> None:
    """Refuse an output folder of another run or of other data, and weights to start from that are missing or of another
    shape."""
    output = Path(run.output)
    imports = run.init is not None and is_hf_folder(Path(run.init))
    if checkpoint_steps(output) and not imports:
        check_same_run(run, output)
    if complete_steps(output):
        check_data_identity(run)
    if imports:
        if not checkpoint_steps(output):
            check_init_shape(run)
    elif objective_of(run).init_to_read(resumes=bool(complete_steps(output))) is not None:
        check_init(run)


def check_same_run(run: RunConfig, output: Path) -> RunConfig:
    """Refuse to resume from a checkpoint of a run with other weights, rows, objective or optimizer. Returns the
    configuration of its last start."""
    frozen = output / RUN
    require(
        frozen.is_file(),
        f"{checkpoints_folder(output)} holds a checkpoint, but {frozen} is missing",
        "a folder that `nld train` wrote",
        "choose another output=, or start from it with init=",
    )
    last = read_frozen_run(output)
    free = {name: getattr(run.data, name) for name in FREE_OF_DATA}
    before = replace(last, data=replace(last.data, **free))
    for name in FIXED_ON_RESUME:
        changed = setting_differences(getattr(before, name), getattr(run, name), name)
        require(
            not changed,
            f"{output} holds a checkpoint of another run: {'; '.join(changed)}",
            "resuming with the same " + ", ".join(FIXED_ON_RESUME),
            "choose another output=, or undo the change",
        )
    require(
        before.train.global_batch == run.train.global_batch,
        f"train.global_batch={run.train.global_batch}, the checkpoint in {output} has {before.train.global_batch}",
        "the same global batch: rows are numbered by it",
        "undo the change, or choose another output=",
    )
    kept, wanted = leaf_values(before), leaf_values(run)
    changed = [f"{key} was {kept[key]}, is {wanted[key]}" for key in FIXED_OPTIMIZER if kept[key] != wanted[key]]
    require(
        not changed,
        f"the optimizer in {output} was saved with other settings: {'; '.join(changed)}",
        "resuming with the same " + ", ".join(FIXED_OPTIMIZER),
        f"undo the change, or start from its weights: init={output} and another output=",
    )
    return last


def check_init(run: RunConfig) -> None:
    """Refuse weights that are missing, damaged, or of another shape."""
    assert run.init is not None
    folder = Path(run.init)
    newest = init_checkpoint(run.init, run.init_step)
    other = holds_no_model(folder)
    require(
        other is None,
        f"init={run.init!r} is a {other}'s run: its checkpoints hold no model",
        "the folder of a model",
        "give the folder of the model that it is for",
    )
    shape = folder / MODEL
    require(shape.is_file(), f"init={run.init!r}: {shape} is missing", f"a folder with {MODEL}", "correct init=")
    recorded = read_json_object(shape, TRAINED_OR_IMPORTED)
    check_same_model(run.init, recorded, run.model)
    check_same_vision(run.init, recorded, run.vision)
    check_init_optimizer(run)
    check_checkpoint_contents(newest)
    objective = objective_of(run)
    if objective.adapter is not None and objective.adapter.adapter is not None:
        folder = Path(objective.adapter.adapter)
        check_init_adapter(objective.section, objective.adapter, folder)
        StoredAdapter(folder, run.model).check_numbers()


def check_init_optimizer(run: RunConfig) -> None:
    """Refuse init_optimizer where `init` holds no optimizer, or one that this run cannot go on with."""
    if not run.init_optimizer:
        return
    assert run.init is not None
    before = read_run_if_any(Path(run.init))
    got = f"init_optimizer=True with init={run.init!r}"
    require(
        before is not None and objective_of(run).adapter is None,
        f"{got}, which has no optimizer of this run's weights",
        "the output folder of `nld train` of the whole model, in both stages",
        "set init_optimizer=False, or name such a folder",
    )
    assert before is not None
    # Megatron finds stored moments by the learning rates of their group.
    names = ("optimizer.lr", "optimizer.min_lr", "train.precision", "parallel.distributed_optimizer")
    kept, wanted = (leaf_values(each) for each in (before, run))
    changed = [f"{name}={kept[name]} there, {wanted[name]} here" for name in names if kept[name] != wanted[name]]
    require(
        not changed,
        f"{got}: {'; '.join(changed)}",
        "the same in both stages, of which one schedule is made",
        "set them as there, or init_optimizer=False",
    )


def check_init_shape(run: RunConfig) -> None:
    """Refuse a Hugging Face folder of another shape before it is read whole. A text run reads its text alone."""
    assert run.init is not None
    check_init_optimizer(run)
    described = read_folder_config(Path(run.init))
    check_same_model(run.init, model_record(described.model), run.model)
    if run.vision is not None:
        described = with_folder_vision(described, Path(run.init))
    check_same_vision(run.init, vision_record(described.vision), run.vision)


def check_init_adapter(section: str, lora: LoraSettings, folder: Path) -> None:
    """Refuse an adapter to start from that is missing, or of another rank or scale."""
    said, weights = folder / CONFIG, folder / WEIGHTS
    there = said.is_file() and weights.is_file()
    require(
        there, f"{section}.adapter={str(folder)!r}", f"a PEFT folder with {CONFIG} and {WEIGHTS}", "correct the path"
    )
    content = read_json_object(said, "a PEFT folder")
    found, wanted = (content.get("r"), content.get("lora_alpha")), (lora.rank, lora.alpha)
    require(
        found == wanted,
        f"{said} with r={found[0]} and lora_alpha={found[1]}",
        f"{section}.rank={wanted[0]} and {section}.alpha={wanted[1]:g}",
        f"set {section}.rank and {section}.alpha to its numbers",
    )
