"""The joint objective, from a row to the numbers that Megatron adds up."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nld_train.config import RunConfig, TrainConfig
from nld_train.dual_stream.context_shard import WHOLE
from nld_train.objectives.choose import objective_of
from nld_train.objectives.joint import JointObjective
from nld_train.recipe import load_recipe
from nld_train.types import Batch, NoisyRow, Row


def run_with(alpha: float) -> RunConfig:
    run = load_recipe("tiny_stage2_joint", ["data.sequence_length=32", "diffusion.block_size=8"])
    return replace(run, diffusion=replace(run.diffusion, alpha=alpha))


def rows(count: int = 3) -> list[Row]:
    made = []
    for index in range(count):
        tokens = torch.randint(200, 300, (33,), generator=torch.Generator().manual_seed(index))
        made.append(Row(index, tokens, torch.ones(33, dtype=torch.bool)))
    return made


def batch_of(objective: JointObjective) -> Batch:
    return objective.collate_draws([objective.draw_row(row, "train") for row in rows()], WHOLE)


class RampForwards:
    """A model whose cross-entropy at head position i is i."""

    training = True

    def position_nll(self, batch: Batch) -> Tensor:
        return torch.arange(batch.head_positions.numel(), dtype=torch.float32, requires_grad=True)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_numerator_is_that_of_the_formula(alpha: float) -> None:
    """SUM CE(clean) + alpha * SUM 1/p * CE(noisy) [design section 3], over 3 x 32 supervised tokens."""
    objective = JointObjective(run_with(alpha))
    batch = batch_of(objective)
    nll, loss = objective.forward_loss(RampForwards(), batch)
    total, count, shown = loss(nll)
    clean, noisy = nll[: 3 * 32], nll[3 * 32 :]
    assert torch.isclose(total, clean.sum() + alpha * (noisy * batch.diffusion_weights).sum())
    assert count == 96 and count.dtype is torch.int32
    assert set(shown) == {"AR loss", "diffusion loss", "total loss", "mask ratio"}
    assert all(pair.shape == (2,) and not pair.requires_grad for pair in shown.values())
    total.backward()
    assert nll.grad is not None and torch.equal(nll.grad[:96], torch.ones(96))


def test_without_diffusion_the_clean_half_is_run_alone() -> None:
    objective = JointObjective(run_with(0.0))
    assert isinstance(objective.draw_row(rows()[0], "train"), Row)
    batch = batch_of(objective)
    nll, loss = objective.forward_loss(RampForwards(), batch)
    total, _, shown = loss(nll)
    assert batch.input_ids.shape == (3, 32) and list(shown) == ["AR loss"] and torch.isclose(total, nll.sum())


def test_blocks_are_drafted_where_there_is_a_noisy_half_and_something_to_draft() -> None:
    assert JointObjective(run_with(0.3)).drafted_rows == TrainConfig(global_batch=1).eval_decode > 0
    assert JointObjective(run_with(0.0)).drafted_rows == 0
    small = run_with(0.3)
    alone = replace(small, diffusion=replace(small.diffusion, block_size=1))
    assert JointObjective(alone).drafted_rows == 0
    assert JointObjective(replace(small, train=replace(small.train, eval_decode=7))).drafted_rows == 7
    assert objective_of(load_recipe("tiny_drafter")).drafted_rows == 0  # its evaluation drafts every row


def test_a_draw_belongs_to_the_row_and_the_purpose() -> None:
    objective, row = JointObjective(run_with(0.3)), rows()[2]
    one, again, other = (objective.draw_row(row, purpose) for purpose in ("train", "train", "validation"))
    assert isinstance(one, NoisyRow) and isinstance(again, NoisyRow) and isinstance(other, NoisyRow)
    assert torch.equal(one.noisy, again.noisy) and not torch.equal(one.p, other.p)


def test_the_terminal_shows_losses_to_four_places_and_the_ratio_to_three() -> None:
    figures = {"AR loss": 3.97123, "mask ratio": 0.50211, "accepted length": 1.65625, "drafts kept up to 1": 0.375}
    text = JointObjective(run_with(0.3)).figures_text(figures)
    assert text == "AR loss 3.9712  mask ratio 0.502  accepted length 1.6562"
