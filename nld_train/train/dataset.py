"""Rows of the run, from token files or chat files, with the noise that belongs to each row.

A row's number in the run decides everything about it: its tokens, through Megatron's sample index or the packing of
conversations, and its noise. The loader's workers draw the noise, so layouts, restarts and evaluations cannot disturb
it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
from megatron.bridge.data.base import DatasetBuildContext, DatasetProvider
from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from torch.utils.data import Dataset

from nld_train.config import RunConfig
from nld_train.data.chat_packing import Plans, open_packings
from nld_train.data.chat_rows import ChatFileRows, ChatRows
from nld_train.data.manifest import parse_blend
from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.objectives.choose import objective_of
from nld_train.objectives.contract import MicroBatch, Objective
from nld_train.recipe import run_from_json
from nld_train.types import Row

ENDLESS = 1 << 40  # rows


class TokenRows(GPTDataset):
    """Megatron's GPT dataset. It gives the L + 1 tokens of a row and the lengths of the documents they come from."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """tokens [L + 1] int64, supervised [L + 1] bool, and document_lengths, a list."""
        tokens, _, document_lengths = self._query_document_sample_shuffle_indices(index)
        return {
            "tokens": numpy.asarray(tokens, numpy.int64),
            "supervised": numpy.ones(len(tokens), numpy.bool_),
            "document_lengths": document_lengths,
        }


class RunRows(Dataset):
    """Rows numbered 0, 1, ... in the run. From row `repeat_after` on they are the first ones again, noise included."""

    def __init__(
        self,
        token_rows: Dataset | ChatRows,
        objective: Objective,
        *,
        purpose: str,
        count: int,
        repeat_after: int,
        shard: ContextShard = WHOLE,
    ) -> None:
        self.token_rows, self.objective, self.purpose = token_rows, objective, purpose
        self.count, self.repeat_after, self.shard = count, repeat_after, shard

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        """Row `number` of the run with its random draw, as the objective makes it."""
        return self.objective.draw_row(self._row(number % self.repeat_after), self.purpose)

    def collate_fn(self, draws: list) -> MicroBatch:
        """A micro-batch of such rows. Megatron-Bridge's loader calls this by name."""
        return self.objective.collate_draws(draws, self.shard)

    def _row(self, index: int) -> Row:
        """Row `index` before any noise."""
        sample = self.token_rows[index]
        tokens, supervised = torch.from_numpy(sample["tokens"]), torch.from_numpy(sample["supervised"])
        numbers = torch.arange(len(sample["document_lengths"]))
        documents = numbers.repeat_interleave(torch.tensor(sample["document_lengths"]))[: len(tokens) - 1]
        return Row(index, tokens, supervised, documents)


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
        evaluated = run.train.eval_batches * run.train.global_batch
        if run.data.chat:
            train, valid = _build_chat_rows(run, self.index_folder, context.train_samples, evaluated)
        else:
            train, valid, _ = BlendedMegatronDatasetBuilder(
                TokenRows, [context.train_samples, evaluated, 0], lambda: True, self._megatron_config(run, context)
            ).build()
        objective = objective_of(run)
        # Every context rank is given whole rows, because their noise belongs to the rows and not to a rank.
        shard = ContextShard(
            parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
        )
        training_rows = RunRows(
            train,
            objective,
            purpose="train",
            count=context.train_samples,
            repeat_after=context.train_samples,
            shard=shard,
        )
        if not evaluated:
            return training_rows, None, None
        # Every evaluation takes `evaluated` rows, so each one starts again at row 0.
        validation_rows = RunRows(
            valid,
            objective.for_evaluation(),
            purpose="validation",
            count=ENDLESS,
            repeat_after=evaluated,
            shard=shard,
        )
        self.validation_rows = validation_rows
        return training_rows, validation_rows, None

    def _megatron_config(self, run: RunConfig, context: DatasetBuildContext) -> GPTDatasetConfig:
        """What Megatron's builder is asked for: the blend of files, their split, and nothing that we make ourselves."""
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


def _build_chat_rows(
    run: RunConfig, index_folder: str, train_rows: int, validation_rows: int
) -> tuple[ChatRows, ChatRows | None]:
    """Training and validation rows of a run on chat files, planned by the first rank where nobody has yet."""
    first = torch.distributed.get_rank() == 0
    if not first:
        torch.distributed.barrier()
    plans = open_packings(run, Path(index_folder))
    if first:
        torch.distributed.barrier()
    train = _split_chat_rows(run, plans, "train", train_rows)
    return train, _split_chat_rows(run, plans, "validation", validation_rows) if validation_rows else None


def _split_chat_rows(run: RunConfig, plans: Plans, split: str, count: int) -> ChatRows:
    """`count` rows of one split of the run's chat files."""
    length = run.data.sequence_length
    files = [ChatFileRows(prefix, plan[split].rows, length) for prefix, plan in plans.items()]
    weights = [weight for weight, _ in parse_blend(run.data.blend) if weight is not None]
    return ChatRows(files, weights or None, run.data.shuffle_seed, count)
