"""The mask of a micro-batch as a value: from it every backend makes its masks and pieces, and by it they are cached."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.dual_stream.row_layout import RowLayout

Span = tuple[int, int]  # the first token, and how many there are


@dataclass(frozen=True)
class MaskSpec:
    """Says who sees whom in the rows of a micro-batch: the layout, the context rank's shard, the documents, and which
    tokens have no noisy copy.

    It is hashable and holds plain numbers alone, so that no use of it waits for a device.
    """

    layout: RowLayout
    shard: ContextShard = WHOLE
    documents: tuple[tuple[int, ...], ...] | None = None  # tokens of each document, row by row; None: nothing is packed
    clean_only: tuple[tuple[Span, ...], ...] | None = None  # without a noisy copy, row by row; with documents

    @staticmethod
    def from_documents(
        layout: RowLayout, documents: Tensor | None, shard: ContextShard = WHOLE, clean_only: Tensor | None = None
    ) -> "MaskSpec":
        """The spec of rows whose tokens belong to `documents` [B, L] int64, non-decreasing; None: one document a row.
        Tokens of `clean_only` [B, L] bool have no noisy copy; None: all have one.

        Pass CPU tensors: reading a GPU tensor here would block the host.
        """
        assert clean_only is None or documents is not None, "clean_only comes with documents"
        lengths = None if documents is None else tuple(map(_run_lengths, documents))
        return MaskSpec(layout, shard, lengths, None if clean_only is None else tuple(map(_true_spans, clean_only)))

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
        return self.layout.noisy_length // self.shard.ranks

    def as_single_row(self) -> "MaskSpec":
        """The packed rows laid one behind the other, as one row: documents keep rows apart as they do within a row."""
        assert self.documents is not None and self.shard == WHOLE, f"{self}: not packed, or a context rank's shard"
        assert self.clean_only is None, f"{self}: padding of the noisy half would stand between two rows"
        rows = len(self.documents)
        layout = RowLayout(
            rows * self.layout.length, self.layout.block_size, self.layout.dual, self.layout.noisy_causal
        )
        return MaskSpec(layout, WHOLE, (tuple(length for row in self.documents for length in row),))

    def row_spec(self, row: int) -> "MaskSpec":
        """The spec of one packed row alone."""
        assert self.documents is not None, f"{self}: rows that are not packed"
        clean_only = None if self.clean_only is None else (self.clean_only[row],)
        return MaskSpec(self.layout, self.shard, (self.documents[row],), clean_only)

    def document_numbers(self) -> Tensor:
        """The document of every token: [B, L] int64 on the CPU, counted 0, 1, ... in every row."""
        assert self.documents is not None, f"{self}: rows that are not packed"
        return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in self.documents])

    def documents_on(self, device: torch.device) -> Tensor | None:
        """`document_numbers` on a device, [B, L] int64; None where nothing is packed."""
        return _documents_on(self, device) if self.packed else None

    def places_on(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """`documents_on` and `clean_only_on`: what `row_layout.locate_row` asks for."""
        return self.documents_on(device), self.clean_only_on(device)

    def clean_only_on(self, device: torch.device) -> Tensor | None:
        """Which tokens have no noisy copy, on a device: [B, L] bool; None where all have one."""
        return None if self.clean_only is None else _clean_only_on(self, device)


@lru_cache(maxsize=4)  # all layers of a forward, and all chunks of queries in a layer, ask for the same ones
def _documents_on(spec: MaskSpec, device: torch.device) -> Tensor:
    return copy_to_device(spec.document_numbers(), device)


@lru_cache(maxsize=4)
def _clean_only_on(spec: MaskSpec, device: torch.device) -> Tensor:
    assert spec.clean_only is not None, f"{spec}: every token has a noisy copy"
    marked = torch.zeros(len(spec.clean_only), spec.layout.length, dtype=torch.bool)
    for row, spans in zip(marked, spec.clean_only, strict=True):
        for start, count in spans:
            row[start : start + count] = True
    return copy_to_device(marked, device)


def _true_spans(flags: Tensor) -> tuple[Span, ...]:
    """The spans of `flags` [L] bool that are true."""
    values, counts = flags.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    return tuple(zip(starts[values].tolist(), counts[values].tolist(), strict=True))


def _run_lengths(documents: Tensor) -> tuple[int, ...]:
    """Tokens of every document of one row, `documents` [L]."""
    return tuple(documents.unique_consecutive(return_counts=True)[1].tolist())


def copy_to_device(x: Tensor, device: torch.device) -> Tensor:
    """A host's tensor x (any shape) on a device; the host does not wait for the copy."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
