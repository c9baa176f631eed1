"""What decides who sees whom in the rows of a micro-batch: masks and pieces of rows are made of it, and kept by it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.dual_stream.row_layout import RowLayout


@dataclass(frozen=True)
class MaskSpec:
    """Hashable, and without a tensor of a device, so that nothing waits for one."""

    layout: RowLayout
    cut: ContextShard = WHOLE
    documents: tuple[tuple[int, ...], ...] | None = None  # of packed rows: tokens of each document, row by row

    @staticmethod
    def of(layout: RowLayout, cut: ContextShard, documents: Tensor | None) -> "MaskSpec":
        """documents: [B, L] int64 non-decreasing, or None; of a GPU it would be waited for."""
        lengths = None if documents is None else tuple(map(_run_lengths, documents))
        return MaskSpec(layout, cut, lengths)

    @property
    def own_noisy(self) -> int:
        """Noisy tokens of the rank; in a doubled row of one document its clean keys stand behind as many noisy ones."""
        return self.cut.tokens(self.layout) if self.layout.dual else 0

    def flat(self) -> "MaskSpec":
        """Packed rows one behind the other as a single one: documents keep them apart as they do within a row."""
        assert self.documents is not None and self.cut == WHOLE, f"{self}: rows that are not packed, or cut"
        rows = len(self.documents)
        layout = RowLayout(
            rows * self.layout.length, self.layout.block_size, self.layout.dual, self.layout.noisy_causal
        )
        return MaskSpec(layout, WHOLE, (tuple(length for row in self.documents for length in row),))

    def document_numbers(self) -> Tensor:
        """[B, L] int64, on the CPU: 0, 1, ... in every row."""
        assert self.documents is not None, f"{self}: rows that are not packed"
        return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in self.documents])


def _run_lengths(documents: Tensor) -> tuple[int, ...]:
    """Tokens of every document of a row; documents [L]."""
    return tuple(documents.unique_consecutive(return_counts=True)[1].tolist())


def copy_to_device(x: Tensor, device: torch.device) -> Tensor:
    """A host's tensor on a device; neither waits for the other."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
