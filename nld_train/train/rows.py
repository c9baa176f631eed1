"""Rows of the run, from Megatron's blended token files, with the noise that belongs to each row.

A row's number in the run decides everything about it: its tokens, through Megatron's sample index, and its noise. The
loader's workers draw the noise, so layouts, restarts and evaluations cannot disturb it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import torch
from megatron.bridge.data.base import DatasetBuildContext, DatasetProvider
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from torch.utils.data import Dataset

from nld_train.config import DiffusionConfig, RunConfig
from nld_train.data.manifest import parse_blend
from nld_train.dual_stream.batch import collate
from nld_train.noise.corrupt import corrupt
from nld_train.recipe import from_json
from nld_train.types import Batch, NoisyRow, Row

ENDLESS = 1 << 40  # rows


class TokenRows(GPTDataset):
    """Megatron's GPT dataset, giving the L + 1 tokens of a row and the lengths of the documents they come from."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens, _, document_lengths = self._query_document_sample_shuffle_indices(index)
        return {"tokens": numpy.asarray(tokens, numpy.int64), "document_lengths": document_lengths}


class Rows(Dataset):
    """Rows numbered 0, 1, ... in the run; from `repeat_after` on they are the first ones again, noise included."""

    def __init__(
        self,
        token_rows: Dataset,
        diffusion: DiffusionConfig,
        *,
        purpose: str,
        global_batch: int,
        count: int,
        repeat_after: int,
    ) -> None:
        self.token_rows, self.diffusion = token_rows, diffusion
        self.purpose, self.global_batch = purpose, global_batch
        self.count, self.repeat_after = count, repeat_after

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> NoisyRow | Row:
        index = number % self.repeat_after
        row = self._row(index)
        return corrupt(row, self.diffusion, self.purpose, self.global_batch) if self.diffusion.dual else row

    def collate_fn(self, rows: list[NoisyRow] | list[Row]) -> Batch:
        """Called by name by Megatron-Bridge's loader."""
        return collate(rows, self.diffusion)

    def _row(self, index: int) -> Row:
        sample = self.token_rows[index]
        tokens = torch.from_numpy(sample["tokens"])
        numbers = torch.arange(len(sample["document_lengths"]))
        documents = numbers.repeat_interleave(torch.tensor(sample["document_lengths"]))[: len(tokens) - 1]
        return Row(index, tokens, torch.ones_like(tokens, dtype=torch.bool), documents)


@dataclass(kw_only=True)
class RowsProvider(DatasetProvider):
    """Builds the run's rows when Megatron-Bridge asks for them. Holds plain text, so that checkpoints can record it."""

    run_json: str
    seq_length: int  # L; read by Megatron-Bridge's throughput log
    index_folder: str
    random_seed: int
    validation_rows: ClassVar[Rows | None] = None  # set on the instance by build_datasets; no part of the record

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Rows, Rows | None, None]:
        run = from_json(self.run_json)
        evaluated = run.train.eval_batches * run.train.global_batch
        train, valid, _ = BlendedMegatronDatasetBuilder(
            TokenRows, [context.train_samples, evaluated, 0], lambda: True, self._megatron_config(run, context)
        ).build()
        batch = run.train.global_batch
        training_rows = Rows(
            train,
            run.diffusion,
            purpose="train",
            global_batch=batch,
            count=context.train_samples,
            repeat_after=context.train_samples,
        )
        if not evaluated:
            return training_rows, None, None
        # Every evaluation takes `evaluated` rows, so each one starts again at row 0.
        validation_rows = Rows(
            valid,
            run.diffusion,
            purpose="validation",
            global_batch=batch,
            count=ENDLESS,
            repeat_after=evaluated,
        )
        self.validation_rows = validation_rows
        return training_rows, validation_rows, None

    def _megatron_config(self, run: RunConfig, context: DatasetBuildContext) -> GPTDatasetConfig:
        weights, prefixes = zip(*parse_blend(run.data.blend), strict=True)
        return GPTDatasetConfig(
            random_seed=self.random_seed,
            sequence_length=self.seq_length,
            # Without weights Megatron takes every file whole, in proportion to its size.
            blend=(list(prefixes), None if None in weights else list(weights)),
            split=run.data.split,
            path_to_cache=self.index_folder,
            tokenizer=context.tokenizer,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
