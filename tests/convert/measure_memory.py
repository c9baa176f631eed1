"""Run by test_memory.py: peak resident memory that one conversion adds to what was resident before it, in bytes."""

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from nld_train.convert.config_json import Traits, to_config
from nld_train.convert.export import ExportOptions, write_weights
from nld_train.convert.hugging_face import open_folder
from nld_train.convert.load import pieces, write_checkpoint
from nld_train.convert.output import open_source
from nld_train.convert.safetensors_file import write_safetensors
from nld_train.convert.table import NLD, units
from tests.convert.test_memory import SCALED


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_folder(folder: Path) -> None:
    """A Hugging Face folder with weights of zeros, written in pieces small enough not to matter."""
    folder.mkdir()
    traits = Traits(bos_token_id=1, eos_token_id=2, mask_token_id=100, block_size=32)
    (folder / "config.json").write_text(json.dumps(to_config(SCALED, traits, torch.bfloat16)))
    parts = [part for unit in units(SCALED, NLD) for part in unit.parts]
    rows = (torch.zeros(1, *part.shape[1:]) for part in parts for _ in range(part.shape[0]))
    write_safetensors(folder / "model.safetensors", parts, torch.bfloat16, rows)


def load(folder: Path, output: Path) -> None:
    described, weights = open_folder(folder)
    output.mkdir()
    (output / "model.json").write_text(json.dumps(asdict(SCALED)))
    table = units(SCALED, described.naming)
    write_checkpoint(output, [piece for unit in table for piece in pieces(unit, SCALED, weights, None)])


def main() -> None:
    direction, folder = sys.argv[1], Path(sys.argv[2])
    make_folder(folder / "hf")
    if direction == "import":
        before = peak()
        load(folder / "hf", folder / "output")
    else:
        load(folder / "hf", folder / "output")
        before = peak()
        (folder / "again").mkdir()
        write_weights(open_source(folder / "output"), folder / "again", ExportOptions())
    print(json.dumps({"grown": peak() - before}))


if __name__ == "__main__":
    main()
