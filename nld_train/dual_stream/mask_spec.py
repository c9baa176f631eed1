"""The mask of a micro-batch as a value: from it every backend makes its masks and pieces, and by it they are cached."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.dual_stream.row_layout import RowLayout


@dataclass(frozen=True)
class MaskSpec:
    """Says who sees whom in the rows of a micro-batch: the layout, the context rank's shard and the documents.

    It is hashable and holds plain numbers alone, so that no use of it waits for a device.
    """

    layout: RowLayout
    shard: ContextShard = WHOLE
    documents: tuple[tuple[int, ...], ...] | None = None  # tokens of each document, row by row; None: nothing is packed

    @staticmethod
    def from_documents(layout: RowLayout, documents: Tensor | None, shard: ContextShard = WHOLE) -> "MaskSpec":
        """The spec of rows whose tokens belong to `documents` [B, L] int64, non-decreasing; None: one document a row.

        Pass a CPU tensor: reading a GPU tensor here would block the host.
        """
        lengths = None if documents is None else tuple(map(_run_lengths, documents))
        return MaskSpec(layout, shard, lengths)

    @property
    def packed(self) -> bool:
        """Whether rows hold several documents."""
        return self.documents is not None

    @property
    def query_count(self) -> int:
        """S/c: the rank's queries."""
        return self.layout.size // self.shard.ranks

    @property
    def key_count(self) -> int:
        """K: the keys that the rank's queries are given."""
        return self.shard.key_count(self.layout, self.packed)

    @property
    def own_noisy_count(self) -> int:
        """Noisy tokens of the rank. Where nothing is packed, they are also the keys before the clean ones."""
        return self.shard.tokens(self.layout) if self.layout.dual else 0

    def as_single_row(self) -> "MaskSpec":
        """The packed rows laid one behind the other, as one row: documents keep rows apart as they do within a row."""
        assert self.documents is not None and self.shard == WHOLE, f"{self}: not packed, or a context rank's shard"
        rows = len(self.documents)
        layout = RowLayout(
            rows * self.layout.length, self.layout.block_size, self.layout.dual, self.layout.noisy_causal
        )
        return MaskSpec(layout, WHOLE, (tuple(length for row in self.documents for length in row),))

    def document_numbers(self) -> Tensor:
        """The document of every token: [B, L] int64 on the CPU, counted 0, 1, ... in every row."""
        assert self.documents is not None, f"{self}: rows that are not packed"
        return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in self.documents])

    def documents_on(self, device: torch.device) -> Tensor | None:
        """`document_numbers` on a device, [B, L] int64; None where nothing is packed."""
        return _documents_on(self, device) if self.packed else None


@lru_cache(maxsize=4)  # all layers of a forward, and all chunks of queries in a layer, ask for the same ones
def _documents_on(spec: MaskSpec, device: torch.device) -> Tensor:
    return copy_to_device(spec.document_numbers(), device)


def _run_lengths(documents: Tensor) -> tuple[int, ...]:
    """Tokens of every document of one row, `documents` [L]."""
    return tuple(documents.unique_consecutive(return_counts=True)[1].tolist())


def copy_to_device(x: Tensor, device: torch.device) -> Tensor:
    """A host's tensor x (any shape) on a device; the host does not wait for the copy."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
