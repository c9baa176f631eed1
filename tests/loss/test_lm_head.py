"""The LM-head loss that never holds all logits, against plain cross-entropy."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nld_train import row_arithmetic
from nld_train.loss.cross_entropy import cross_entropy
from nld_train.loss.lm_head import head_nll
from nld_train.loss.vocabulary import VocabularyShard
from nld_train.row_arithmetic import chunk_width

ROWS, WIDTH, VOCABULARY = 37, 12, 1000


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks: 1,000 tokens in 8 of 128, the last one not full."""
    monkeypatch.setattr(row_arithmetic, "CHUNK_LOGITS", ROWS * 128)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, targets, weights of the rows."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    targets[:3] = torch.tensor([0, 127, VOCABULARY - 1])
    return hidden, weight, targets, torch.rand(ROWS, generator=generator, dtype=torch.float64)


def with_gradients(nll: Tensor, rows: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return (nll.detach(), *torch.autograd.grad((nll * rows.to(nll)).sum(), leaves))


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(hidden @ weight.T, targets)


def test_chunks_are_several_and_uneven() -> None:
    assert chunk_width(ROWS) == 128
    assert VOCABULARY % 128 != 0


def test_equals_plain_cross_entropy_forward_and_backward() -> None:
    hidden, weight, targets, rows = inputs()
    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    got = with_gradients(head_nll(hidden, weight, targets), rows, *leaves)
    expected = with_gradients(plain(hidden, weight, targets), rows, *leaves)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_logits_of_any_size_stay_finite() -> None:
    hidden, weight, targets, _ = inputs()
    torch.testing.assert_close(head_nll(1e4 * hidden, weight, targets), plain(1e4 * hidden, weight, targets))


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, targets, rows = inputs()
    hidden.requires_grad_()
    (head_nll(hidden, weight, targets) * rows).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_bfloat16_is_summed_in_float32() -> None:
    """As near to the float64 result as rounding the inputs and the gradients' last bit allows."""
    hidden, weight, targets, rows = inputs(torch.bfloat16)
    exact = plain(hidden.double(), weight.double(), targets)
    nll = head_nll(hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert nll.dtype is torch.float32
    torch.testing.assert_close(nll.detach().double(), exact, rtol=1e-5, atol=1e-5)
    (nll * rows).sum().backward()
    leaves = (hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_())
    _, *gradients = with_gradients(plain(*leaves, targets), rows, *leaves)
    for got, expected in zip((hidden.grad, weight.grad), gradients, strict=True):
        assert got is not None and got.dtype is torch.bfloat16
        torch.testing.assert_close(got.double(), expected, rtol=2e-2, atol=2e-2)


def test_no_rows_give_no_loss_and_no_gradient() -> None:
    hidden, weight, targets, _ = inputs()
    weight.requires_grad_()
    nll = head_nll(hidden[:0], weight, targets[:0])
    assert nll.shape == (0,)
    nll.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def one_rank(rank: int, ranks: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    row_arithmetic.CHUNK_LOGITS = ROWS * 128
    hidden, weight, targets, rows = inputs()
    own = slice(rank * VOCABULARY // ranks, (rank + 1) * VOCABULARY // ranks)
    leaves = (hidden.requires_grad_(), weight[own].clone().requires_grad_())
    cut = VocabularyShard(own.start, torch.distributed.group.WORLD)
    nll, hidden_grad, weight_grad = with_gradients(head_nll(*leaves, targets, cut), rows, *leaves)
    whole = (hidden, weight.requires_grad_())
    expected = with_gradients(plain(*whole, targets), rows, *whole)
    for ours, theirs in zip((nll, hidden_grad, weight_grad), (*expected[:2], expected[2][own]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_vocabulary_cut_over_ranks_gives_the_uncut_loss(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (2, str(tmp_path / "store")), nprocs=2)
