"""The last act of a save: a manifest that declares the checkpoint complete."""

import logging
from pathlib import Path

import torch
from megatron.bridge.training.callbacks import Callback, CallbackContext

from nld_train.config import RunConfig
from nld_train.run_folder.checkpoints import checkpoint_file_names, checksum_files, write_checkpoint_manifest
from nld_train.run_folder.paths import TRACKER, checkpoints_folder, step_folder

logger = logging.getLogger(__name__)


class CheckpointCompletion(Callback):
    """Once the files of every rank are written, also asynchronously, takes their checksums and writes the manifest.

    Every rank reads the files that it wrote itself, which are named after its number, because its machine still holds
    them in memory. The first rank reads the rest.
    """

    def __init__(self, run: RunConfig) -> None:
        self.output = Path(run.output)

    def on_checkpoint_save(self, context: CallbackContext) -> None:
        """Every file of the checkpoint is written: take checksums, and let the first rank write the manifest."""
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        folder = step_folder(self.output, self._step())
        own = checksum_files(folder, [name for name in checkpoint_file_names(folder) if name.startswith(f"__{rank}_")])
        measured: list[dict] = [{}] * ranks
        torch.distributed.all_gather_object(measured, own)
        if rank == 0:
            files = {name: found for part in measured for name, found in part.items()}
            files |= checksum_files(folder, [name for name in checkpoint_file_names(folder) if name not in files])
            write_checkpoint_manifest(folder, files)
            logger.info("%s is complete: %d files", folder.name, len(files))

    def _step(self) -> int:
        """The step that was saved, which an asynchronous save outlasts. Megatron's tracker names it, on the machine of
        the first rank."""
        named = [(checkpoints_folder(self.output) / TRACKER).read_text()] if torch.distributed.get_rank() == 0 else [""]
        torch.distributed.broadcast_object_list(named, src=0)
        return int(named[0])
