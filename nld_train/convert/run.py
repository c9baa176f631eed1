"""The three commands: every folder is made under a hidden name, compared, and only then takes its own."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from nld_train.config import require
from nld_train.convert.export import GB, ExportOptions, write_folder
from nld_train.convert.load import write_output
from nld_train.convert.output import IMPORT, open_source, open_tokenizer, read_traits
from nld_train.convert.verify import Finding, verify, verify_import
from nld_train.data.staging import staged_folder

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
    chat: bool
    shard_gb: float | None  # None: one file
    verified: bool
    overwrite: bool


def export(asked: Export) -> None:
    """Training checkpoint -> Hugging Face folder. Raises: UserError; then nothing is left behind."""
    shard = asked.shard_gb
    require(shard is None or shard > 0, f"--shard-gb {shard}", "numbers above 0", "leave it out for one file")
    options = ExportOptions(DTYPES[asked.dtype], None if shard is None else int(shard * GB))
    source = open_source(asked.output, asked.step)
    tokenizer = open_tokenizer(asked.output, asked.tokenizer, source.model.vocab_size)
    traits = read_traits(asked.output, tokenizer, asked.chat)
    check_replaceable(asked.target, "config.json")
    with staged_folder(asked.target, asked.overwrite) as partial:
        write_folder(source, traits, tokenizer.folder, partial, options)
        if asked.verified:
            tell(verify(source, partial))
    logger.info("step %d of %s is in %s", source.step, asked.output, asked.target)


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
    source = open_source(output, step)
    most = source.model.layers
    require(layers is None or 0 < layers <= most, f"--layers {layers}", f"1 to {most}", "leave it out")
    tell(verify(source, folder, layers))


def check_replaceable(target: Path, mark: str) -> None:
    """Refuse to replace a folder that is none of ours, whatever --overwrite says. Raises: UserError."""
    foreign = target.exists() and not (target / mark).is_file()
    require(
        not foreign, f"{target} exists and has no {mark}", "a new folder, or one made by this command", "choose another"
    )


def tell(findings: list[Finding]) -> None:
    for finding in findings:
        logger.info("%s", finding)
