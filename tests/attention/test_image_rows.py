"""Attention on rows with images: every backend is the dense reference, and nothing leaks."""

import pytest
import torch
from torch import Tensor, nn

from nld_train.attention import flex, reference, sdpa
from nld_train.attention.backends import BACKENDS, BackendRequest, refuse_images
from nld_train.attention.fused import lse_merge
from nld_train.attention.fused.kernel import PlainKernel
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.errors import UserError
from tests.attention.conftest import IN_PIECES, Case
from tests.image_rows import DrawnRows, draw_rows

LOCAL_FLEX = lse_merge.FusedAttention(
    PlainKernel(), lse_merge.MergedNoisyAttention(PlainKernel(), flex.FlexLocalAttention())
)
NOISY_FLEX = lse_merge.FusedAttention(PlainKernel(), flex.attend_noisy_flex)
WAYS = {
    "sdpa": sdpa.attend_sdpa,
    "flex": flex.attend_flex,
    "te": IN_PIECES,
    "te+near_flex": LOCAL_FLEX,
    "te+flex": NOISY_FLEX,
}


def random_case(drawn: DrawnRows) -> Case:
    generator = torch.Generator().manual_seed(drawn.layout.size)
    query, key, value = (
        torch.randn(drawn.layout.size, len(drawn.rows), heads, 16, generator=generator, dtype=torch.float64)
        for heads in (4, 2, 2)
    )
    places = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    return Case(drawn.layout, drawn.documents, *places, clean_only=drawn.clean_only)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("seed", range(6))
def test_every_backend_is_the_dense_reference(cpu_backward, name: str, seed: int) -> None:
    drawn = draw_rows(seed, length=48 + seed, text_length=24 + seed, block_size=(1, 2, 3, 4, 8, 16)[seed])
    random_case(drawn).assert_equals_reference(WAYS[name])


def test_backends_without_a_way_for_images_say_so() -> None:
    for name, backend in BACKENDS.items():
        request = BackendRequest(name, "cpu", torch.float32, 64, True, packed=True, images=True)
        if backend.images:
            refuse_images(request)
        else:
            with pytest.raises(UserError, match="with images.*sdpa"):
                refuse_images(request)
    assert {name for name, backend in BACKENDS.items() if not backend.images} == {"cudnn_flex", "te+mod"}


class Net(nn.Module):
    """Two residual layers of attention over [noisy | clean] numbers [B, S, E]."""

    def __init__(self, attend) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attend = attend
        self.qkv = nn.ModuleList(nn.Linear(32, 64, dtype=torch.float64) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(32, 32, dtype=torch.float64) for _ in range(2))

    def forward(self, x: Tensor, spec: MaskSpec) -> Tensor:
        for qkv, out in zip(self.qkv, self.out, strict=True):
            query, key, value = qkv(x).unflatten(-1, (-1, 8)).transpose(1, 2).split([4, 2, 2], 1)
            seen = self.attend(query, key, value, spec, 8**-0.5)
            x = x + torch.tanh(out(seen.transpose(1, 2).flatten(2)))
        return x


@pytest.mark.parametrize("name", ["reference", "sdpa", "te"])
@pytest.mark.parametrize("seed", range(3))
def test_an_image_changes_only_what_may_see_it(name: str, seed: int) -> None:
    """Clean tokens behind it in its document, and noisy blocks that begin behind it: bit for bit no others."""
    drawn = draw_rows(seed, length=56, text_length=30, block_size=3, count=1)
    (row,) = drawn.rows
    assert row.images and row.clean_only is not None and row.documents is not None
    net = Net({"reference": reference.attend_reference, "sdpa": sdpa.attend_sdpa, "te": IN_PIECES}[name])
    spec = MaskSpec.from_documents(drawn.layout, drawn.documents, clean_only=drawn.clean_only)
    x = torch.randn(1, drawn.layout.size, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    text = (~row.clean_only).nonzero().flatten().tolist()
    for image in row.images:
        other = x.clone()
        other[0, drawn.layout.clean_start + image.start] += 1.0
        with torch.no_grad():
            moved = set((net(x, spec) != net(other, spec)).any(-1)[0].nonzero().flatten().tolist())
        same = row.documents == row.documents[image.start]
        later = [token for token in range(image.start, drawn.layout.length) if same[token]]
        clean = {drawn.layout.clean_start + token for token in later}
        noisy = {place for place, token in enumerate(text) if token in later}
        assert moved == clean | noisy


def test_a_noisy_token_changes_its_own_block_alone() -> None:
    drawn = draw_rows(2, length=56, text_length=30, block_size=3, count=1)
    net = Net(sdpa.attend_sdpa)
    spec = MaskSpec.from_documents(drawn.layout, drawn.documents, clean_only=drawn.clean_only)
    x = torch.randn(1, drawn.layout.size, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for place in range(drawn.layout.noisy_length):
        other = x.clone()
        other[0, place] += 1.0
        with torch.no_grad():
            moved = (net(x, spec) != net(other, spec)).any(-1)[0].nonzero().flatten().tolist()
        assert place in moved and max(moved) - min(moved) < 3 and max(moved) < drawn.layout.clean_start
