"""The shapes of attention that are checked and measured, and random inputs for them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.dual_stream.row_layout import RowLayout


@dataclass(frozen=True)
class AttentionShape:
    """The sizes of an attention call of the dual stream."""

    length: int  # L
    block_size: int
    rows: int  # B
    heads: int  # H
    kv_heads: int  # G
    head_dim: int  # D
    documents: int = 1  # packed in a row

    @property
    def packed(self) -> bool:
        """Whether rows hold several documents."""
        return self.documents > 1

    @property
    def layout(self) -> RowLayout:
        """The layout of a doubled row of this shape."""
        return RowLayout(self.length, self.block_size, dual=True)

    def __str__(self) -> str:
        heads = f"{self.heads} heads, {self.kv_heads} key heads of {self.head_dim}"
        packed = f" of {self.documents} packed documents" if self.packed else ""
        return f"L {self.length}, block {self.block_size}, {self.rows} row(s){packed}, {heads}"


@dataclass(frozen=True)
class AttentionInputs:
    """The tensors of an attention call. They are views of [S, B, H, D], as the model lays them out."""

    query: Tensor  # [B, H, S, D]
    key: Tensor  # [B, G, S, D]
    value: Tensor  # [B, G, S, D]
    cotangent: Tensor  # [B, H, S, D]: the gradient of the output
    scale: float
    documents: Tensor | None = None  # [B, L] int64 on the CPU

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """query [B, H, S, D]; key, value [B, G, S, D]: what gradients are taken of."""
        return self.query, self.key, self.value

    def gradients(self, output: Tensor) -> tuple[Tensor, ...]:
        """The gradients of query [B, H, S, D] and of key and value [B, G, S, D], from an output [B, H, S, D]."""
        return torch.autograd.grad(output, self.leaves, self.cotangent)


def draw_attention_inputs(
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    *,
    positions: int | None = None,
    sharpness: float = 1.0,
) -> AttentionInputs:
    """Standard normal queries, keys, values and cotangents of a shape.

    positions: how many there are, S unless given. sharpness: the standard deviation of the scores; at 4 a single key
    often decides, so that one pair that is wrongly seen or hidden shows.
    """
    length = shape.layout.size if positions is None else positions

    def draw(heads: int) -> Tensor:
        numbers = torch.randn(
            length, shape.rows, heads, shape.head_dim, generator=generator, device=device, dtype=torch.float32
        )
        return numbers.to(dtype).permute(1, 2, 0, 3)

    query, cotangent = draw(shape.heads), draw(shape.heads)
    key, value = draw(shape.kv_heads), draw(shape.kv_heads)
    for leaf in (query, key, value):
        leaf.requires_grad_()
    documents = draw_document_numbers(shape, device, generator) if shape.packed else None
    return AttentionInputs(query, key, value, cotangent, sharpness / shape.head_dim**0.5, documents)


def draw_document_numbers(shape: AttentionShape, device: torch.device, generator: torch.Generator) -> Tensor:
    """Documents that start anywhere, so that some are long and some are short: [B, L] int64 on the CPU."""
    drawn = torch.randint(1, shape.length, (shape.rows, shape.documents - 1), generator=generator, device=device)
    starts = drawn.cpu().sort(1).values
    return torch.searchsorted(starts, torch.arange(shape.length).repeat(shape.rows, 1), right=True)
