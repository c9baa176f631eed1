"""Checkpoint folders without Megatron: what a finished save leaves for a start to look at, and ways to damage it."""

import os
import shutil
from pathlib import Path

import torch

from nld_train.run_folder.checkpoints import MANIFEST, checkpoint_file_names, checksum_files, write_checkpoint_manifest
from nld_train.run_folder.paths import NEWEST_TRAIN_STATE, TRACKER, TRAIN_STATE, checkpoints_folder, step_folder

SHARD = "__0_0.distcp"


def save_checkpoint(output: str | Path, step: int) -> Path:
    """A finished checkpoint of a step; returns its folder."""
    folder = step_folder(Path(output), step)
    folder.mkdir(parents=True)
    (folder / SHARD).write_bytes(os.urandom(1000))
    torch.save({"step": torch.tensor(step)}, folder / TRAIN_STATE)
    write_checkpoint_manifest(folder, checksum_files(folder, checkpoint_file_names(folder)))
    (checkpoints_folder(Path(output)) / TRACKER).write_text(str(step))
    shutil.copyfile(folder / TRAIN_STATE, checkpoints_folder(Path(output)) / NEWEST_TRAIN_STATE)
    return folder


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGES = {
    "truncated": lambda folder: truncate(folder / SHARD),
    "bit_flipped": lambda folder: flip(folder / SHARD),
    "empty": lambda folder: empty(folder / SHARD),
    "missing_file": lambda folder: (folder / SHARD).unlink(),
    "no_manifest": lambda folder: (folder / MANIFEST).unlink(),
    "nested_manifest": lambda folder: (folder / MANIFEST).write_text('{"files":' + "[" * 100_000),
    "cut_manifest": lambda folder: truncate(folder / MANIFEST),
}
