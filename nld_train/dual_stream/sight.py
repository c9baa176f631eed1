"""What decides who sees whom in the rows of a micro-batch: masks and pieces of rows are made of it, and kept by it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.dual_stream.context import WHOLE, Cut
from nld_train.dual_stream.layout import Layout


@dataclass(frozen=True)
class Sight:
    """Hashable, and without a tensor of a device, so that nothing waits for one."""

    layout: Layout
    cut: Cut = WHOLE
    documents: tuple[tuple[int, ...], ...] | None = None  # of packed rows: tokens of each document, row by row

    @staticmethod
    def of(layout: Layout, cut: Cut, documents: Tensor | None) -> "Sight":
        """documents: [B, L] int64 non-decreasing, or None; of a GPU it would be waited for."""
        lengths = None if documents is None else tuple(map(run_lengths, documents))
        return Sight(layout, cut, lengths)

    @property
    def own_noisy(self) -> int:
        """Noisy tokens of the rank; in a doubled row of one document its clean keys stand behind as many noisy ones."""
        return self.cut.tokens(self.layout) if self.layout.dual else 0

    def flat(self) -> "Sight":
        """Packed rows one behind the other as a single one: documents keep them apart as they do within a row."""
        assert self.documents is not None and self.cut == WHOLE, f"{self}: rows that are not packed, or cut"
        rows = len(self.documents)
        layout = Layout(rows * self.layout.length, self.layout.block_size, self.layout.dual, self.layout.noisy_causal)
        return Sight(layout, WHOLE, (tuple(length for row in self.documents for length in row),))

    def document_numbers(self) -> Tensor:
        """[B, L] int64, on the CPU: 0, 1, ... in every row."""
        assert self.documents is not None, f"{self}: rows that are not packed"
        return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in self.documents])


def run_lengths(documents: Tensor) -> tuple[int, ...]:
    """Tokens of every document of a row; documents [L]."""
    return tuple(documents.unique_consecutive(return_counts=True)[1].tolist())


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A host's tensor on a device; neither waits for the other."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
