"""Nothing in a step may wait for the device: which LM-head rows there are is known to the loader, and what the step
makes is made where it is used. On a CPU nothing waits; what would is found by the operators that are called.
"""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from nld_train.bench.plain_model import PlainNetwork, micro_batch_objective
from nld_train.config import DrafterConfig
from nld_train.loss.drafter_loss import drafter_terms, draw_drafts, judge_drafts
from nld_train.loss.lm_head import head_nll
from nld_train.loss.objective import drafter_numerator, drafter_pairs, loss_numerator
from nld_train.loss.terms import loss_terms
from nld_train.loss.vocabulary import VocabularyShard
from nld_train.objective_sections import DrafterLoss
from nld_train.objectives.joint import JointObjective
from nld_train.types import DraftDraws
from tests.model.build import build
from tests.model.test_gpt import batch_at, run_at
from tests.never_waits import NeverWaits


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.sum().item(),
        lambda x: float(x.max()),
        lambda x: bool((x > 0).any()),
        lambda x: x.masked_fill_(x > 0, 1)[x.isnan()],
        lambda x: x.index_put_((x > 0,), torch.ones(())),
        lambda x: torch.tensor(1.0),
        lambda x: x.repeat_interleave(x.long().clamp(0, 2)),
        lambda x: torch.zeros(3).to("meta"),
        lambda x: torch.unique(x),
    ],
)
def test_the_watch_sees_what_it_is_meant_to_see(act: Callable[[Tensor], Any]) -> None:
    x = torch.randn(5)
    with pytest.raises(AssertionError, match="waits for the device|copies from"), NeverWaits():
        act(x)


@pytest.mark.megatron
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_step_never_waits(alpha: float, packed: bool) -> None:
    run = run_at(alpha, packed)
    model, batch = build(run), batch_at(run)
    model(batch=batch)  # what is made once: angles, masks
    with NeverWaits():
        total, count, shown = JointObjective(run).joint_loss(batch, model(batch=batch))
        total.backward()
    assert torch.isfinite(total) and count > 0 and shown
    assert all(weight.grad is not None for weight in model.parameters())


META = torch.device("meta")


def test_the_losses_stay_on_their_device() -> None:
    """On the device without data, on which a number that is read would be an error too."""
    hidden = torch.empty(9, 8, device=META, requires_grad=True)
    head = torch.empty(300, 8, device=META, requires_grad=True)
    batch = batch_at(run_at(0.3)).to(META)
    with NeverWaits():
        head_nll(hidden, head, torch.empty(9, dtype=torch.int64, device=META)).sum().backward()
        sums = loss_terms(batch.ar_weights.clone(), batch.diffusion_weights.clone(), batch)
        assert loss_numerator(sums, 0.3, 1.0).device == META


def test_a_step_in_plain_torch_layers_never_waits() -> None:
    """The same batch, attention, head and losses, without Megatron around them."""
    run = run_at(0.3)
    network, batch = PlainNetwork(run, torch.device("cpu"), naive=False), batch_at(run)
    micro_batch_objective(network, batch, run, naive=False)
    with NeverWaits():
        micro_batch_objective(network, batch, run, naive=False).backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("loss", get_args(DrafterLoss))
def test_the_drafters_loss_stays_on_its_device(loss: DrafterLoss) -> None:
    settings, blocks, drafted = DrafterConfig(top_k=5, loss=loss), 3, 4
    p, q = (torch.empty(blocks * drafted, 40, device=META) for _ in range(2))
    draws = DraftDraws(
        *(torch.empty(blocks, drafted, dtype=torch.float64, device=META) for _ in range(2)),
        greedy=torch.empty(blocks, dtype=torch.bool, device=META),
    )
    q.requires_grad_()
    with NeverWaits():
        tokens = draw_drafts(q, draws, VocabularyShard())
        verdicts = judge_drafts(p, q, tokens, draws, VocabularyShard())
        sums = drafter_terms(p, q, verdicts, settings, 7, VocabularyShard())
        shown = drafter_pairs(sums)
        drafter_numerator(sums).backward()
    assert q.grad is not None
    assert all(part.device == META for pair in shown.values() for part in pair)


@pytest.mark.megatron
def test_the_query_scale_is_made_where_the_queries_are() -> None:
    from nld_train.dual_stream.row_layout import RowLayout
    from nld_train.model.core_attention import query_scale_factor

    with NeverWaits():
        assert query_scale_factor(RowLayout(8, 2, dual=True), 4, 0.1, device=META).device == META


def test_batches_hold_positions_and_no_masks() -> None:
    batch = batch_at(run_at(0.3))
    assert batch.head_positions.dtype is torch.int64
    assert not any(part.dtype is torch.bool for part in vars(batch).values() if isinstance(part, Tensor))
