"""The LM-head loss that makes its gradients in its forward, against the one that training uses and plain arithmetic."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nld_train import row_arithmetic
from nld_train.loss.eager_head import eager_head_loss
from nld_train.loss.lm_head import WHOLE_VOCABULARY, head_nll
from nld_train.loss.vocabulary import VocabularyShard
from tests.loss.test_lm_head import ROWS, VOCABULARY, inputs, plain

SCALE = 0.7  # what the sum is multiplied with before it is differentiated, as the trainer does


def eager(
    hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, shard: VocabularyShard = WHOLE_VOCABULARY
) -> tuple[Tensor, ...]:
    """The nll [R], the total and its gradients."""
    found = eager_head_loss(hidden, weight, targets, shares, shard)
    return found.nll, found.total.detach(), *torch.autograd.grad(SCALE * found.total, (hidden, weight))


def expected(nll: Tensor, hidden: Tensor, weight: Tensor, shares: Tensor) -> tuple[Tensor, ...]:
    total = (nll * shares).sum()
    return nll.detach(), total.detach(), *torch.autograd.grad(SCALE * total, (hidden, weight))


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """37 rows in 8 chunks of 5, the last one not full."""
    monkeypatch.setattr(row_arithmetic, "CHUNK_LOGITS", 5 * VOCABULARY)
    assert row_arithmetic.chunk_rows(VOCABULARY) == 5 and ROWS % 5


@pytest.mark.parametrize("loss", [head_nll, plain])
@pytest.mark.parametrize("sharpness", [1.0, 1e4])
def test_equals_the_other_losses_forward_and_backward(loss, sharpness: float) -> None:
    hidden, weight, targets, shares = inputs()
    leaves = ((sharpness * hidden).requires_grad_(), weight.requires_grad_())
    wanted = expected(loss(*leaves, targets), *leaves, shares)
    for got, want in zip(eager(*leaves, targets, shares), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_bfloat16_is_summed_in_float32() -> None:
    hidden, weight, targets, shares = inputs(torch.bfloat16)
    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    wide = tuple(leaf.detach().double().requires_grad_() for leaf in leaves)
    nll, total, *gradients = eager(*leaves, targets, shares.float())
    exact_nll, exact_total, *exact = expected(plain(*wide, targets), *wide, shares)
    assert nll.dtype is total.dtype is torch.float32
    torch.testing.assert_close(nll.double(), exact_nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total.double(), exact_total, rtol=1e-5, atol=1e-5)
    for got, want in zip(gradients, exact, strict=True):
        assert got.dtype is torch.bfloat16
        torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=2e-2)


def test_no_rows_give_no_loss_and_no_gradient() -> None:
    hidden, weight, targets, shares = inputs()
    leaves = (hidden[:0].requires_grad_(), weight.requires_grad_())
    nll, total, _, weight_grad = eager(*leaves, targets[:0], shares[:0])
    assert nll.shape == (0,) and total == 0 and not weight_grad.any()


def one_rank(rank: int, ranks: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    row_arithmetic.CHUNK_LOGITS = 5 * VOCABULARY // ranks
    hidden, weight, targets, shares = inputs()
    own = slice(rank * VOCABULARY // ranks, (rank + 1) * VOCABULARY // ranks)
    whole = (hidden.requires_grad_(), weight.requires_grad_())
    cut = (hidden, weight.detach()[own].clone().requires_grad_())
    *wanted, weight_grad = expected(plain(*whole, targets), *whole, shares)
    found = eager(*cut, targets, shares, VocabularyShard(own.start, torch.distributed.group.WORLD))
    for got, want in zip(found, (*wanted, weight_grad[own]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_vocabulary_cut_over_ranks_gives_the_uncut_loss(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (2, str(tmp_path / "store")), nprocs=2)
