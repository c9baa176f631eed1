"""What is said of a step whose gradient norm is no number, and how a loss that is none spreads to the gradient."""

import math

import pytest
import torch

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_rank")]


def test_the_rank_and_samples_of_the_loss_are_named() -> None:
    from nld_train.train.callbacks.health import not_finite_message

    ranks = [[([0, 1], 5.0), ([2, 3], 4.0)], [([4, 5], math.nan), ([6, 7], 4.0)]]
    assert not_finite_message(41, math.nan, ranks) == (
        "step 41: gradient norm nan, loss not finite (rank 1 nan with samples 4, 5); "
        "no weight was changed, nothing was saved"
    )


def test_a_gradient_alone_names_the_samples_of_every_rank() -> None:
    from nld_train.train.callbacks.health import not_finite_message

    said = not_finite_message(41, math.inf, [[([0, 1], 5.0), ([2, 3], 4.0)], [([4, 5], 3.0)]])
    assert "gradient norm inf, finite losses (rank 0 with samples 0, 1, 2, 3; rank 1 with samples 4, 5)" in said


def test_many_ranks_are_counted() -> None:
    from nld_train.train.callbacks.health import not_finite_message

    said = not_finite_message(1, math.nan, [[([rank], math.nan)] for rank in range(64)])
    assert "rank 3 nan with samples 3; 60 more ranks)" in said


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_has_no_finite_gradient(value: float) -> None:
    from nld_train.train.callbacks.health import poison_if_not_finite

    weight = torch.ones(3, requires_grad=True)
    poison_if_not_finite((weight * torch.tensor([1.0, 2.0, value])).sum()).backward()
    assert weight.grad is not None and not weight.grad.isfinite().any()


def test_a_finite_loss_is_left_as_it_is() -> None:
    from nld_train.train.callbacks.health import poison_if_not_finite

    plain = torch.randn(100, requires_grad=True)
    watched = plain.detach().clone().requires_grad_()
    loss = (plain.sin() * 1e3).sum()
    loss.backward()
    same = poison_if_not_finite((watched.sin() * 1e3).sum())
    same.backward()
    assert same.item() == loss.item()
    assert plain.grad is not None and watched.grad is not None and torch.equal(plain.grad, watched.grad)


def test_the_check_comes_before_the_weights_change() -> None:
    """A real Megatron optimizer whose gradient is no number."""
    from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig
    from megatron.core.optimizer.optimizer import FP32Optimizer

    from nld_train.train.patches import watch_gradient_norm

    weight = torch.nn.Parameter(torch.ones(3))
    weight.main_grad = torch.tensor([1.0, math.nan, 1.0])
    inner = torch.optim.SGD([weight], lr=0.1)
    settings = OptimizerConfig(optimizer="sgd", lr=0.1, clip_grad=1.0)
    optimizer = ChainedOptimizer([FP32Optimizer(inner, settings, lambda *_: None)])
    norms: list[float | None] = []

    def stop(norm: float | None) -> None:
        norms.append(norm)
        raise FloatingPointError

    watch_gradient_norm(optimizer, stop)
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert len(norms) == 1 and norms[0] is not None and math.isnan(norms[0])
    assert torch.equal(weight, torch.ones(3))
