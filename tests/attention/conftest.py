"""Layouts and random tensors shared by the attention tests."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from nld_train.attention.fused import local, lse_merge
from nld_train.attention.fused.kernel import PlainKernel
from nld_train.attention.reference import attend_reference
from nld_train.dual_stream.context_shard import ContextShard
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout

# The arithmetic of backend "te" on a kernel that runs everywhere.
IN_PIECES = lse_merge.FusedAttention(
    PlainKernel(), lse_merge.MergedNoisyAttention(PlainKernel(), local.WindowedLocalAttention(PlainKernel()))
)

# With whole and cut blocks, a causal noisy half, one block alone, and without a noisy half.
FUSED_LAYOUTS = [
    RowLayout(24, 4, True),
    RowLayout(21, 4, True),
    RowLayout(24, 4, True, True),
    RowLayout(3, 4, True),
    RowLayout(9, 4, False),
]


@pytest.fixture
def cpu_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses flex_attention's backward on the CPU at the door; its uncompiled mathematics is the GPU's."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)


@dataclass(frozen=True)
class Case:
    """Random inputs of one attention call; documents or none."""

    layout: RowLayout
    documents: Tensor | None
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float = 0.3
    clean_only: Tensor | None = None

    @property
    def spec(self) -> MaskSpec:
        return MaskSpec.from_documents(self.layout, self.documents, clean_only=self.clean_only)

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (part.detach().clone().requires_grad_() for part in (self.query, self.key, self.value))
        return query, key, value

    def output_and_gradients(self, attend) -> tuple[Tensor, ...]:
        """The output of a backend called `attend`, and the gradients of a random sum of it."""
        inputs = self.leaves()
        output = attend(*inputs, self.spec, self.scale)
        return output, *torch.autograd.grad(output, inputs, self.cotangent().to(output.device))

    def assert_equals_reference(self, attend) -> None:
        """Outputs and gradients of a backend called `attend` are those of the dense reference, in float64."""
        fast, slow = self.output_and_gradients(attend), self.output_and_gradients(attend_reference)
        for one, other in zip(fast, slow, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)

    def assert_equals_on_context_ranks(self, attend) -> None:
        """Each of two context ranks has its part of the reference's output."""
        expected = attend_reference(self.query, self.key, self.value, self.spec, self.scale)
        for shard in (ContextShard(2, 0), ContextShard(2, 1)):
            queries, keys = shard.queries(self.layout), shard.keys(self.layout, packed=False)
            here = (self.query[:, :, queries], self.key[:, :, keys], self.value[:, :, keys])
            output = attend(*here, replace(self.spec, shard=shard), self.scale)
            torch.testing.assert_close(output, expected[:, :, queries], rtol=1e-10, atol=1e-12)

    def cotangent(self) -> Tensor:
        """Random weights of the outputs, [B, H, S, D]."""
        return torch.randn(self.query.shape, generator=torch.Generator().manual_seed(5), dtype=self.query.dtype)


@pytest.fixture
def case():
    """Makes a Case; `packed` gives every row documents of its own."""

    def make(layout: RowLayout, heads=(4, 2), packed=False, dtype=torch.float64, dim=16, device="cpu") -> Case:
        generator = torch.Generator().manual_seed(layout.size * 100 + heads[0])
        # Laid out as Megatron lays them out, [S, B, H, D], and seen as [B, H, S, D].
        query, key, value = (
            torch.randn(layout.size, 2, count, dim, generator=generator, dtype=dtype).permute(1, 2, 0, 3).to(device)
            for count in (heads[0], heads[1], heads[1])
        )
        documents = torch.randint(0, 4, (2, layout.length), generator=generator).sort(1).values.to(device)
        return Case(layout, documents if packed else None, query, key, value)

    return make
