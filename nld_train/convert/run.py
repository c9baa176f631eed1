"""The three commands: every folder is made under a hidden name, compared, and only then takes its own."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from nld_train.config import require
from nld_train.convert.adapter import AdapterSource, open_adapter, trains_drafter, write_adapter
from nld_train.convert.export import GB, ExportOptions, write_folder
from nld_train.convert.load import write_output
from nld_train.convert.output import open_source, open_tokenizer, read_traits, trained_on_chat
from nld_train.convert.verify import Finding, bits_of, verify, verify_import
from nld_train.convert.verify_adapter import verify_drafts, verify_stored
from nld_train.data.chat_template import TEMPLATE, load_template
from nld_train.files import staged_folder
from nld_train.peft_names import FOLDER
from nld_train.run_folder.paths import IMPORT

logger = logging.getLogger(__name__)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Export:
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


def export(asked: Export) -> None:
    """Training checkpoint -> Hugging Face folder. Raises: UserError; then nothing is left behind."""
    shard = asked.shard_gb
    require(shard is None or shard > 0, f"--shard-gb {shard}", "numbers above 0", "leave it out for one file")
    options = ExportOptions(DTYPES[asked.dtype], None if shard is None else int(shard * GB))
    adapter = open_adapter(asked.output, asked.step) if trains_drafter(asked.output) else None
    output, step = (asked.output, asked.step) if adapter is None else (adapter.base, None)
    source = open_source(output, step)
    tokenizer = open_tokenizer(output, asked.tokenizer, source.model.vocab_size)
    chat = asked.chat or trained_on_chat(output)
    traits = read_traits(output, tokenizer, chat)
    check_replaceable(asked.target, "config.json")
    with staged_folder(asked.target, asked.overwrite) as partial:
        write_folder(source, traits, tokenizer.folder, partial, options)
        if chat:  # also where the tokenizer's folder has none and conversations are written in the default one
            (partial / TEMPLATE).write_text(load_template(tokenizer, thinking=False).text, encoding="utf-8")
        if asked.verified:
            tell(verify(source, partial))
        if adapter is not None:
            add_adapter(adapter, partial, options.dtype)
            if asked.verified:
                tell([*verify_stored(adapter, partial), *verify_drafts(source, partial)])
    logger.info("step %d of %s is in %s", source.step, output, asked.target)


def add_adapter(adapter: AdapterSource, folder: Path, dtype: torch.dtype) -> None:
    """Write the adapter into a folder under its fixed name. Raises: UserError."""
    (folder / FOLDER).mkdir()
    write_adapter(adapter, folder / FOLDER, dtype)


def export_adapter(output: Path, folder: Path, step: int | None, dtype: str, overwrite: bool) -> None:
    """The adapter of a drafter's run alone, into FOLDER/linear_spec_lora. Raises: UserError; then nothing is left.

    Where FOLDER is an export, it is checked to be of the model that the adapter drafts for, and run with PEFT.
    """
    adapter = open_adapter(output, step)
    base = open_source(adapter.base) if (folder / "config.json").is_file() else None
    if base is not None:
        tell([bits_of(base, folder)])
    with staged_folder(folder / FOLDER, overwrite) as partial:
        write_adapter(adapter, partial, DTYPES[dtype])
        tell(verify_stored(adapter, partial))
    if base is not None:
        tell(verify_drafts(base, folder))
    logger.info("the adapter of step %d of %s is in %s", adapter.step, output, folder / FOLDER)


def load(folder: Path, target: Path, padded_vocab: int | None, verified: bool, overwrite: bool) -> None:
    """Hugging Face folder -> training checkpoint. Raises: UserError; then nothing is left behind."""
    check_replaceable(target, IMPORT)
    with staged_folder(target, overwrite) as partial:
        write_output(folder, partial, padded_vocab)
        if verified:
            tell(verify_import(open_source(partial), folder))
    logger.info("start a recipe of this model from it with init=%s", target)


def compare(output: Path, folder: Path, step: int | None, layers: int | None) -> None:
    """Compare a Hugging Face folder with its checkpoint. Raises: UserError where they differ."""
    adapter = open_adapter(output, step) if trains_drafter(output) else None
    source = open_source(output, step) if adapter is None else open_source(adapter.base)
    most = source.model.layers
    require(layers is None or 0 < layers <= most, f"--layers {layers}", f"1 to {most}", "leave it out")
    tell(verify(source, folder, layers))
    if adapter is not None:
        tell([*verify_stored(adapter, folder), *verify_drafts(source, folder, layers)])


def check_replaceable(target: Path, mark: str) -> None:
    """Refuse to replace a folder that is none of ours, whatever --overwrite says. Raises: UserError."""
    foreign = target.exists() and not (target / mark).is_file()
    require(
        not foreign, f"{target} exists and has no {mark}", "a new folder, or one made by this command", "choose another"
    )


def tell(findings: list[Finding]) -> None:
    for finding in findings:
        logger.info("%s", finding)
