"""The three commands: every folder is made under a hidden name, compared, and only then takes its own."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nld_train.config import require
from nld_train.convert.adapter import AdapterSource, open_adapter, open_adapter_base, write_adapter
from nld_train.convert.export import GB, ExportOptions, write_hf_folder
from nld_train.convert.import_checkpoint import write_imported_output
from nld_train.convert.phases import timed_phase
from nld_train.convert.source import (
    open_checkpoint_source,
    open_source_tokenizer,
    read_output_token_ids,
)
from nld_train.convert.verify import VerifyFinding, compare_folder_bits, compare_with_checkpoint, verify_import
from nld_train.convert.verify_adapter import verify_adapter_bits, verify_adapter_logits
from nld_train.convert.verify_runtime import verify_runtime
from nld_train.convert.weight_table import MINISTRAL_TEXT, NLD, NLD_VLM
from nld_train.data.chat_template import TEMPLATE, load_chat_template
from nld_train.files import staged_folder
from nld_train.peft_names import FOLDER
from nld_train.run_folder.frozen import read_run_if_any
from nld_train.run_folder.paths import IMPORT

logger = logging.getLogger(__name__)
LAYOUTS = {"nld": NLD, "ministral3": MINISTRAL_TEXT}
LOGIT_LAYERS = 2  # of an export, run for logits: bits are compared of all, and `nld convert verify` runs what fits
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What `nld convert export` is asked for."""

    output: Path
    target: Path
    step: int | None  # None: the newest
    dtype: str
    tokenizer: Path | None  # None: the run's own
    chat: bool  # also without it where the run was trained on conversations
    shard_gb: float | None  # None: one file
    verified: bool
    overwrite: bool
    layout: str = "nld"  # or another name of LAYOUTS
    text_only: bool = False  # a vision tower is left out


def export_checkpoint(asked: ExportRequest) -> None:
    """Training checkpoint -> Hugging Face folder. Raises: UserError; then nothing is left behind."""
    shard = asked.shard_gb
    require(shard is None or shard > 0, f"--shard-gb {shard}", "numbers above 0", "leave it out for one file")
    naming = LAYOUTS[asked.layout]
    options = ExportOptions(DTYPES[asked.dtype], None if shard is None else int(shard * GB), naming)
    run = read_run_if_any(asked.output)
    drafts = run is not None and run.drafter is not None
    require(
        not drafts or naming is NLD,
        f"--as {asked.layout} of {asked.output}, a drafter's run",
        "runs of a model that decodes left to right without an adapter",
        "export the model that it drafts for",
    )
    adapter = open_adapter(asked.output, asked.step, run) if drafts else None
    with timed_phase("reading the checkpoint's checksums"):
        if adapter is None:
            source = open_checkpoint_source(asked.output, asked.step, run)
        else:
            source = open_adapter_base(adapter)
    if asked.text_only:
        source = replace(source, vision=None)
    if source.vision is not None:
        got, allowed = (
            f"--as {asked.layout} of {asked.output}, a model with a vision tower",
            "--as nld, or its text alone",
        )
        require(naming is NLD, got, allowed, "add --text-only, which leaves the tower out")
        options = replace(options, naming=NLD_VLM)
    tokenizer = open_source_tokenizer(source, asked.tokenizer)
    chat = asked.chat or source.trained_on_chat
    traits = read_output_token_ids(source, tokenizer, chat)
    check_replaceable(asked.target, "config.json")
    with staged_folder(asked.target, asked.overwrite) as partial:
        with timed_phase("writing the weights"):
            write_hf_folder(source, traits, tokenizer.folder, partial, options)
        # Also where the tokenizer's folder has none and conversations are written in the default one. With a tower the
        # export has written one that takes images.
        if chat and source.vision is None:
            (partial / TEMPLATE).write_text(load_chat_template(tokenizer, thinking=False).text, encoding="utf-8")
        if asked.verified:
            log_findings(compare_with_checkpoint(source, partial, LOGIT_LAYERS))
        if adapter is not None:
            add_adapter(adapter, partial, options.dtype)
            if asked.verified:
                log_findings(
                    [*verify_adapter_bits(adapter, partial), *verify_adapter_logits(source, partial, LOGIT_LAYERS)]
                )
    logger.info("step %d of %s is in %s", source.step, source.output, asked.target)


def add_adapter(adapter: AdapterSource, folder: Path, dtype: torch.dtype) -> None:
    """Write the adapter into a folder under its fixed name. Raises: UserError."""
    (folder / FOLDER).mkdir()
    write_adapter(adapter, folder / FOLDER, dtype)


def export_adapter(output: Path, folder: Path, step: int | None, dtype: str, overwrite: bool) -> None:
    """The adapter of a drafter's run alone, into FOLDER/linear_spec_lora. Raises: UserError; then nothing is left.

    Where FOLDER is an export, it is checked to be of the model that the adapter drafts for, and run with PEFT.
    """
    adapter = open_adapter(output, step)
    base = open_adapter_base(adapter) if (folder / "config.json").is_file() else None
    if base is not None:
        log_findings([compare_folder_bits(base, folder)])
    with staged_folder(folder / FOLDER, overwrite) as partial:
        write_adapter(adapter, partial, DTYPES[dtype])
        log_findings(verify_adapter_bits(adapter, partial))
    if base is not None:
        log_findings(verify_adapter_logits(base, folder))
    logger.info("the adapter of step %d of %s is in %s", adapter.step, output, folder / FOLDER)


def import_folder(
    folder: Path, target: Path, padded_vocab: int | None, verified: bool, overwrite: bool, text_only: bool = False
) -> None:
    """Hugging Face folder -> training checkpoint. text_only: a vision tower is left out. Raises: UserError; then
    nothing is left behind."""
    check_replaceable(target, IMPORT)
    with staged_folder(target, overwrite) as partial:
        with timed_phase("writing the checkpoint"):
            write_imported_output(folder, partial, padded_vocab, text_only)
        if verified:
            with timed_phase("reading the checkpoint's checksums"):
                source = open_checkpoint_source(partial)
            log_findings(verify_import(source, folder))
    logger.info("start a recipe of this model from it with init=%s", target)


def verify_folder(output: Path, folder: Path, step: int | None, layers: int | None) -> None:
    """Compare a Hugging Face folder with its checkpoint. Raises: UserError where they differ."""
    run = read_run_if_any(output)
    adapter = open_adapter(output, step, run) if run is not None and run.drafter is not None else None
    source = open_checkpoint_source(output, step, run) if adapter is None else open_adapter_base(adapter)
    most = source.model.layers
    require(layers is None or 0 < layers <= most, f"--layers {layers}", f"1 to {most}", "leave it out")
    log_findings(compare_with_checkpoint(source, folder, layers))
    if adapter is not None:
        log_findings([*verify_adapter_bits(adapter, folder), *verify_adapter_logits(source, folder, layers)])


def compare_runtime(folder: Path, runtime: str, python: Path | None) -> None:
    """Compare what a runtime decodes from a folder with what we do. Raises: UserError where they differ."""
    with timed_phase(f"decoding with {runtime}"):
        log_findings(verify_runtime(folder, runtime, python))


def check_replaceable(target: Path, mark: str) -> None:
    """Refuse to replace a folder that is none of ours, whatever --overwrite says. Raises: UserError."""
    foreign = target.exists() and not (target / mark).is_file()
    require(
        not foreign, f"{target} exists and has no {mark}", "a new folder, or one made by this command", "choose another"
    )


def log_findings(findings: list[VerifyFinding]) -> None:
    for finding in findings:
        logger.info("%s", finding)
