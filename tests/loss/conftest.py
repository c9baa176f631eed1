"""A small net with real attention, and the rows it is trained on."""

import pytest
import torch
from torch import Tensor, nn

from nld_train.attention import sdpa
from nld_train.config import DiffusionConfig
from nld_train.dual_stream.batch import collate_rows
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.loss.cross_entropy import cross_entropy
from nld_train.loss.terms import loss_terms
from nld_train.noise.corrupt import corrupt_row
from nld_train.types import Batch, LossTerms, Row

LENGTH, BLOCK, VOCABULARY, WIDTH = 24, 4, 40, 16


class TinyNet(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, dtype=dtype)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, dtype=dtype)
        self.head = nn.Linear(WIDTH, VOCABULARY, dtype=dtype)

    def logits(self, ids: Tensor, dual: bool) -> Tensor:
        """[B, S, V]"""
        x = self.embedding(ids)
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        seen = sdpa.attend_sdpa(query, key, value, MaskSpec(RowLayout(LENGTH, BLOCK, dual)), 0.5)
        return self.head(x + torch.tanh(seen.transpose(1, 2).flatten(2)))

    def terms(self, batch: Batch) -> LossTerms:
        """Logits only of the positions that a loss needs."""
        logits = self.logits(batch.input_ids, dual=batch.input_ids.shape[1] > LENGTH).flatten(0, 1)
        ar = cross_entropy(logits[batch.ar_positions], batch.ar_targets)
        return loss_terms(ar, cross_entropy(logits[batch.diffusion_positions], batch.diffusion_targets), batch)

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters()]


@pytest.fixture
def net():
    return TinyNet


@pytest.fixture
def rows():
    """Eight rows of unequal supervision: all, none, a prompt and an answer, padding at the end, every other token."""
    generator = torch.Generator().manual_seed(3)
    place = torch.arange(LENGTH + 1)
    flags = [
        place >= 0,
        place < 0,
        place > 9,
        place < 7,
        place % 2 == 0,
        (place > 3) & (place < 20),
        place > 20,
        place == 0,
    ]
    return [
        Row(index, torch.randint(2, VOCABULARY, (LENGTH + 1,), generator=generator), supervised)
        for index, supervised in enumerate(flags)
    ]


@pytest.fixture
def batches():
    """Corrupts rows and collates them in micro-batches."""

    def make(rows: list[Row], config: DiffusionConfig, micro_batch: int) -> list[Batch]:
        ready = [corrupt_row(row, config, "train", len(rows)) for row in rows] if config.dual else rows
        return [collate_rows(ready[at : at + micro_batch], config) for at in range(0, len(ready), micro_batch)]

    return make


@pytest.fixture
def settings():
    def make(**changes) -> DiffusionConfig:
        return DiffusionConfig(**{"block_size": BLOCK, "mask_token_id": 1} | changes)

    return make
