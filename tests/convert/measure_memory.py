"""Run by test_memory.py: peak resident memory that one conversion adds to what was resident before it, in bytes."""

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from nld_train.convert.config_json import SpecialTokenIds, make_config_json
from nld_train.convert.export import ExportOptions, write_hf_weights
from nld_train.convert.hf_folder import open_hf_folder
from nld_train.convert.import_checkpoint import tensor_ranges, write_initial_checkpoint
from nld_train.convert.safetensors_file import write_safetensors
from nld_train.convert.source import open_checkpoint_source
from nld_train.convert.weight_table import NLD, weight_mappings
from tests.convert.test_memory import SCALED


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_folder(folder: Path) -> None:
    """A Hugging Face folder with weights of zeros, written in pieces small enough not to matter."""
    folder.mkdir()
    traits = SpecialTokenIds(bos_token_id=1, eos_token_id=2, mask_token_id=100, block_size=32)
    (folder / "config.json").write_text(json.dumps(make_config_json(SCALED, traits, torch.bfloat16)))
    parts = [part for unit in weight_mappings(SCALED, NLD) for part in unit.parts]
    rows = (torch.zeros(1, *part.shape[1:]) for part in parts for _ in range(part.shape[0]))
    write_safetensors(folder / "model.safetensors", parts, torch.bfloat16, rows)


def load(folder: Path, output: Path) -> None:
    described, weights = open_hf_folder(folder)
    output.mkdir()
    (output / "model.json").write_text(json.dumps(asdict(SCALED)))
    table = weight_mappings(SCALED, described.naming)
    write_initial_checkpoint(output, [piece for unit in table for piece in tensor_ranges(unit, SCALED, weights, None)])


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
        write_hf_weights(open_checkpoint_source(folder / "output"), folder / "again", ExportOptions())
    print(json.dumps({"grown": peak() - before}))


if __name__ == "__main__":
    main()
