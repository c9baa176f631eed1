"""Rows of the run, from token files, chat files or trajectories, with the noise that belongs to each row.

A row's number in the run decides everything about it: its tokens, through the order of the data, and its noise. The
loader's workers draw the noise, so layouts, restarts and evaluations cannot disturb it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from megatron.bridge.data.base import DatasetBuildContext, DatasetProvider
from megatron.core import parallel_state
from torch.utils.data import Dataset

from nld_train.config import RunConfig
from nld_train.data.blended_rows import BlendedRows
from nld_train.data.image_pixels import image_pixels
from nld_train.data.image_store import StoredImage
from nld_train.data.run_rows import RunParts, open_run_rows
from nld_train.data.trajectory_rows import TrajectoryRows
from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.objectives.choose import objective_of
from nld_train.objectives.contract import MicroBatch, Objective
from nld_train.recipe import run_from_json
from nld_train.trajectories.sampler_batch import TrajectoryRow
from nld_train.types import Row, RowImage

ENDLESS = 1 << 40  # rows


class RunRows(Dataset):
    """Rows numbered 0, 1, ... in the run. From row `repeat_after` on they are the first ones again, noise included."""

    def __init__(
        self,
        token_rows: BlendedRows | TrajectoryRows,
        objective: Objective,
        *,
        purpose: str,
        count: int,
        repeat_after: int,
        shard: ContextShard = WHOLE,
    ) -> None:
        assert len(token_rows) >= min(count, repeat_after), f"{len(token_rows)} rows, {repeat_after} asked for"
        self.token_rows, self.objective, self.purpose = token_rows, objective, purpose
        self.count, self.repeat_after, self.shard = count, repeat_after, shard

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        """Row `number` of the run with its random draw, as the objective makes it."""
        return self.objective.draw_row(self.plain_row(number % self.repeat_after), self.purpose)

    def collate_fn(self, draws: list) -> MicroBatch:
        """A micro-batch of such rows. Megatron-Bridge's loader calls this by name."""
        return self.objective.collate_draws(draws, self.shard)

    def plain_row(self, index: int) -> Any:
        """Row `index` before any noise."""
        sample = self.token_rows[index]
        if isinstance(sample, TrajectoryRow):
            return sample
        tokens, supervised = torch.from_numpy(sample["tokens"]), torch.from_numpy(sample["supervised"])
        numbers = torch.arange(len(sample["document_lengths"]))
        documents = numbers.repeat_interleave(torch.tensor(sample["document_lengths"]))[: len(tokens) - 1]
        clean_only = torch.from_numpy(sample["clean_only"]) if "clean_only" in sample else None
        images = tuple(decode_stored_image(image) for image in sample.get("images", ()))
        return Row(index, tokens, supervised, documents, images, clean_only)


def decode_stored_image(image: StoredImage) -> RowImage:
    """An image of a row, decoded in the loader's worker."""
    pixels = image_pixels(image.data, image.cell, image.longest_edge)
    expected = (3, image.rows * image.cell, image.columns * image.cell)
    assert tuple(pixels.shape) == expected, f"an image became {tuple(pixels.shape)}, its tokens are for {expected}"
    return RowImage(image.start, pixels)


@dataclass(kw_only=True)
class RunRowsProvider(DatasetProvider):
    """Builds the run's rows when Megatron-Bridge asks for them. Holds plain text, so that checkpoints can record it."""

    run_json: str
    seq_length: int  # L; read by Megatron-Bridge's throughput log
    index_folder: str
    random_seed: int
    validation_rows: ClassVar[RunRows | None] = None  # set on the instance by build_datasets; no part of the record

    def build_datasets(self, context: DatasetBuildContext) -> tuple[RunRows, RunRows | None, None]:
        """Training rows, validation rows (None where nothing is evaluated) and no test rows."""
        run = run_from_json(self.run_json)
        parts = _open_in_turn(run, Path(self.index_folder))
        objective = objective_of(run)
        # Every context rank is given whole rows, because their noise belongs to the rows and not to a rank.
        shard = ContextShard(
            parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
        )
        training_rows = RunRows(
            parts["train"],
            objective,
            purpose="train",
            count=context.train_samples,
            repeat_after=context.train_samples,
            shard=shard,
        )
        if "validation" not in parts:
            return training_rows, None, None
        # Every evaluation takes the same rows, so each one starts again at row 0.
        validation_rows = RunRows(
            parts["validation"],
            objective.for_evaluation(),
            purpose="validation",
            count=ENDLESS,
            repeat_after=len(parts["validation"]),
            shard=shard,
        )
        self.validation_rows = validation_rows
        return training_rows, validation_rows, None


def _open_in_turn(run: RunConfig, folder: Path) -> RunParts:
    """The rows of the run. The first rank makes what nobody has made yet; then the others read it."""
    first = torch.distributed.get_rank() == 0
    if not first:
        torch.distributed.barrier()
    parts = open_run_rows(run, folder)
    if first:
        torch.distributed.barrier()
    return parts
