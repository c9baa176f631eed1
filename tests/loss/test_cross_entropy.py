import math

import torch

from nld_train.loss.cross_entropy import cross_entropy


def test_minus_the_logarithm_of_the_targets_probability():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(9.0), 0.0]], dtype=torch.float64)
    expected = torch.tensor([math.log(4.0), math.log(10.0)], dtype=torch.float64)
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([0, 1])), expected)


def test_gradient_is_probability_minus_one_hot():
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64, requires_grad=True)
    cross_entropy(logits, torch.tensor([0])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.75, 0.75]], dtype=torch.float64))


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0)).bfloat16()
    nll = cross_entropy(logits, torch.arange(5))
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, cross_entropy(logits.double(), torch.arange(5)).float())


def test_large_logits_do_not_overflow():
    assert cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([1])).tolist() == [2e4]


def test_no_positions_give_no_losses():
    assert cross_entropy(torch.empty(0, 7), torch.empty(0, dtype=torch.int64)).shape == (0,)
