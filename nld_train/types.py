"""The nouns that travel between the rooms, and the shape-letter legend of every docstring.

B  rows in a micro-batch              V  vocabulary size (padded where a model pads it)
L  tokens in a row                    H  query heads
S  positions the model is given:      G  key/value heads
   2L as [noisy | clean], L alone     D  head dimension
   beside images, L_text + L          E  hidden size
R  positions sent to the LM head      c  context-parallel ranks
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowImage:
    """An image of a row, decoded. Its tokens stand in the row as `vision_config.VisionConfig` says."""

    start: int  # the row's token that is the image's first cell
    pixels: Tensor  # [3, rows * cell, columns * cell] float32, normalised


@dataclass(frozen=True)
class Row:
    """One row of the run, as read from the token files, before any noise.

    `tokens` and `supervised` hold one token more than the row is long, because the last clean position predicts it:
    position i predicts tokens[i + 1] and counts iff supervised[i + 1]; token i may be masked iff supervised[i].
    """

    index: int  # global sample index: the row's number in the run, the same for every layout and after every resume
    tokens: Tensor  # [L + 1] int64
    supervised: Tensor  # [L + 1] bool
    documents: Tensor | None = (
        None  # [L] int64, non-decreasing: which packed document a token is of; None: one document
    )
    images: tuple[RowImage, ...] = ()  # by ascending start
    # [L] bool: tokens that stand in the clean half alone, those of images and of padding; None: there are none
    clean_only: Tensor | None = None


@dataclass(frozen=True)
class NoisyRow:
    """A row and one draw of its noise."""

    row: Row
    noisy: Tensor  # [L] int64: tokens with the masked ones replaced by mask_token_id
    masked: Tensor  # [L] bool: z_i
    p: Tensor  # [L] float32: the exact probability with which token i was to be masked (unused where it may not be)


@dataclass(frozen=True)
class BatchImages:
    """The images of a micro-batch, row by row and in each row by ascending start; n of them."""

    pixels: Tensor  # [n, 3, H, W] float32, each in the upper left corner and padded with zeros to the largest
    sizes: Tensor  # [n, 2] int64 on the host: height and width in pixels, multiples of a cell
    positions: Tensor  # [F] int64, flat positions of the cells, image by image, row of cells by row of cells


@dataclass(frozen=True)
class Batch:
    """A micro-batch as the model and the losses see it. Positions of the LM head are known here, on the host, so that
    the training step never waits for the device to count them.

    Flat positions number the model's [B, S] input row by row: row * S + position. Under context parallelism S is that
    of a rank's part of the rows, which has its own terms; documents stay whole (dual_stream/context.py).
    """

    input_ids: Tensor  # [B, S] int64
    documents: Tensor | None  # [B, L] int64 on the host, or None
    ar_positions: Tensor  # [R_ar] int64, flat positions of clean tokens whose next token is supervised
    ar_targets: Tensor  # [R_ar] int64
    ar_weights: Tensor  # [R_ar] float32: 1 under token averaging
    diffusion_positions: Tensor  # [R_diff] int64, flat positions of masked noisy tokens; empty without a noisy half
    diffusion_targets: Tensor  # [R_diff] int64
    diffusion_weights: Tensor  # [R_diff] float32: 1/p under token averaging
    denominator: (
        Tensor  # [] float32: this micro-batch's share of N (supervised tokens, or rows under sequence averaging)
    )
    maskable: Tensor  # [] float32: how many tokens could have been masked; with R_diff the mask ratio
    sample_indices: Tensor  # [B] int64
    clean_only: Tensor | None = None  # [B, L] bool on the host, tokens without a noisy copy; None: there are none
    images: BatchImages | None = None

    @property
    def head_positions(self) -> Tensor:
        """Flat positions sent to the LM head, [R_ar + R_diff]: AR first."""
        return torch.cat([self.ar_positions, self.diffusion_positions])

    @property
    def head_targets(self) -> Tensor:
        """Their targets, [R_ar + R_diff]."""
        return torch.cat([self.ar_targets, self.diffusion_targets])

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device, but for what stays on the host; asynchronous from pinned memory."""
        return _on(self, device)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory: torch's DataLoader calls this by name."""
        return _each(self, Tensor.pin_memory)


@dataclass(frozen=True)
class LossTerms:
    """What one micro-batch adds to the objective: weighted sums of cross-entropy (nats), and counts. Never a mean."""

    ar_sum: Tensor  # [] float32
    diffusion_sum: Tensor  # [] float32; 0 without a noisy half
    denominator: Tensor  # [] float32
    ar_weight: Tensor  # [] float32: the sum of the AR terms' weights; under a document mask fewer than the denominator
    masked: Tensor  # [] float32
    maskable: Tensor  # [] float32


@dataclass(frozen=True)
class DraftDraws:
    """The random numbers of the drafts of N blocks, n drafted tokens each."""

    draft: Tensor  # [N, n] float64, uniform: which token is drawn
    accept: Tensor  # [N, n] float64, uniform: whether it is accepted
    greedy: Tensor  # [N] bool: the block drafts by argmax and needs neither


@dataclass(frozen=True)
class DraftBatch:
    """A micro-batch of the drafter: the noisy half holds blocks of a seed token and masks, the clean half the rows.

    Flat positions number the model's [B, S] input row by row, as in `Batch`.
    """

    input_ids: Tensor  # [B, S] int64
    documents: Tensor | None  # [B, L] int64 on the host, or None
    draft_positions: Tensor  # [N, n] int64, flat positions of the masks of the blocks that count
    draws: DraftDraws
    sample_indices: Tensor  # [B] int64

    def to(self, device: torch.device) -> "DraftBatch":
        """The same batch on another device, but for what stays on the host; asynchronous from pinned memory."""
        return _on(self, device)

    def pin_memory(self) -> "DraftBatch":
        """The same batch in page-locked memory: torch's DataLoader calls this by name."""
        return _each(self, Tensor.pin_memory)


@dataclass(frozen=True)
class HeadRequest:
    """A forward that is asked for logits."""

    input_ids: Tensor  # [B, S] int64
    documents: Tensor | None  # [B, L] int64 on the host, or None
    head_positions: Tensor  # [R] int64, flat
    clean_only: Tensor | None = None  # [B, L] bool on the host, as in `Batch`
    images: BatchImages | None = None


@dataclass(frozen=True)
class DrafterTerms:
    """What one micro-batch adds to the drafter's objective and to its figures: sums over its blocks, and counts."""

    loss_sum: Tensor  # [] what drafter.loss names; the others are only shown
    hybrid_sum: Tensor  # [] lam * KL + (1 - lam) * TV
    argmax_sum: Tensor  # [] cross-entropy to the verifier's argmax, nats
    overlap_sum: Tensor  # [] sum of min(p, q), at most 1 a block
    expected_sum: Tensor  # [] drafts of a block that are expected to be accepted at temperature 1
    kept_by_place: Tensor  # [n] float32: blocks whose drafts up to this one were all accepted
    blocks: Tensor  # [] float32


# Attention cuts rows into pieces by these, and the tower images, where nothing waits for a device.
ON_HOST = ("documents", "clean_only", "sizes")


def _on[Noun: Batch | DraftBatch](noun: Noun, device: torch.device) -> Noun:
    """A batch on a device, but for the fields that stay on the host."""
    return _each(noun, lambda tensor: tensor.to(device, non_blocking=True), except_for=ON_HOST)


def _each[Noun](noun: Noun, change: Callable[[Tensor], Tensor], except_for: Sequence[str] = ()) -> Noun:
    """A noun with every tensor in it changed but for some fields, those of nouns inside it too."""
    values = {entry.name: getattr(noun, entry.name) for entry in fields(noun)}  # type: ignore[arg-type]
    changed = {
        name: change(value) if isinstance(value, Tensor) else _each(value, change, except_for)
        for name, value in values.items()
        if value is not None and name not in except_for
    }
    return replace(noun, **changed)  # type: ignore[type-var]
