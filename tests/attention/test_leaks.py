"""Through two layers of a small net: who can be changed by whom. Bit for bit: what is not seen has weight zero."""

import pytest
import torch
from torch import Tensor, nn

from nld_train.attention import reference, sdpa
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from tests.attention.conftest import IN_PIECES

LAYOUT = RowLayout(10, 4, True)  # blocks 0-3, 4-7, 8-9
VOCABULARY, HEADS, GROUPS, DIM = 50, 4, 2, 8
BACKENDS = {"reference": reference.attend_reference, "sdpa": sdpa.attend_sdpa, "te": IN_PIECES}


class Net(nn.Module):
    """Two residual layers of attention and a non-linearity over [noisy | clean] ids."""

    def __init__(self, attend) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = HEADS * DIM
        self.attend = attend
        self.embedding = nn.Embedding(VOCABULARY, width, dtype=torch.float64)
        self.qkv = nn.ModuleList(nn.Linear(width, (HEADS + 2 * GROUPS) * DIM, dtype=torch.float64) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width, dtype=torch.float64) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for qkv, out in zip(self.qkv, self.out, strict=True):
            heads = qkv(x).unflatten(-1, (-1, DIM)).transpose(1, 2)
            query, key, value = heads.split([HEADS, GROUPS, GROUPS], 1)
            seen = self.attend(query, key, value, MaskSpec(LAYOUT), DIM**-0.5)
            x = x + torch.tanh(out(seen.transpose(1, 2).flatten(2)))
        return x


@pytest.fixture(params=BACKENDS)
def net(request):
    return Net(BACKENDS[request.param])


def changed_by(net: Net, place: int) -> set[int]:
    """The input positions whose output moves when the id at `place` is another one."""
    ids = torch.randint(0, VOCABULARY - 1, (1, LAYOUT.size), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[0, place] = VOCABULARY - 1
    with torch.no_grad():
        moved = (net(ids) != net(other)).any(-1)[0]
    return set(moved.nonzero().flatten().tolist())


def block(token: int) -> int:
    return token // LAYOUT.block_size


def test_a_clean_token_moves_later_clean_tokens_and_the_noisy_tokens_of_later_blocks(net):
    for token in range(LAYOUT.length):
        clean = {LAYOUT.length + later for later in range(token, LAYOUT.length)}
        noisy = {other for other in range(LAYOUT.length) if block(other) > block(token)}
        assert changed_by(net, LAYOUT.length + token) == clean | noisy


def test_a_noisy_token_moves_its_own_block_and_nobody_else(net):
    for token in range(LAYOUT.length):
        assert changed_by(net, token) == {other for other in range(LAYOUT.length) if block(other) == block(token)}
