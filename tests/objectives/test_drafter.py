"""The drafter's objective, from a row to the numbers that Megatron adds up, on a model of two tables of logits."""

import torch
from torch import Tensor

from nld_train.dual_stream.context_shard import WHOLE
from nld_train.loss.vocabulary import VocabularyShard
from nld_train.objectives.drafter import DrafterObjective
from nld_train.recipe import load_recipe
from nld_train.types import HeadRequest, Row

RUN = load_recipe("tiny_drafter", ["data.sequence_length=32", "diffusion.block_size=4", "drafter.top_k=20"])
MASK, VOCABULARY = RUN.diffusion.mask_token_id, 300


class TableForwards:
    """Logits that depend on the token at a position alone: one table with the adapter, another without."""

    def __init__(self, training: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        self.training = training
        self.drafter, self.base = (torch.randn(VOCABULARY, VOCABULARY, generator=generator) for _ in range(2))
        self.drafter[:, MASK] = 50.0  # nothing is likelier than the mask: it must not be drafted all the same
        self.drafter.requires_grad_()
        self.verified: list[HeadRequest] = []

    def vocabulary_shard(self) -> VocabularyShard:
        return VocabularyShard()

    def position_logits(self, request: HeadRequest) -> Tensor:
        return self.drafter[request.input_ids.flatten()[request.head_positions]]

    def base_causal_logits(self, request: HeadRequest) -> Tensor:
        self.verified.append(request)
        return self.base[request.input_ids.flatten()[request.head_positions]]


def row(index: int) -> Row:
    tokens = torch.randint(200, 300, (33,), generator=torch.Generator().manual_seed(index))
    return Row(index, tokens, torch.ones(33, dtype=torch.bool))


def test_a_step_drafts_verifies_and_counts_blocks() -> None:
    objective, model = DrafterObjective(RUN), TableForwards()
    batch = objective.collate_draws([objective.draw_row(row(index), "train") for index in range(2)], WHOLE)
    q, loss = objective.forward_loss(model, batch)
    total, count, shown = loss(q)
    assert count == 2 * 32 // RUN.diffusion.block_size
    (request,) = model.verified
    drafted = request.input_ids.flatten()[batch.draft_positions]
    assert not (drafted == MASK).any() and not torch.equal(request.input_ids, batch.input_ids)
    assert torch.equal(request.head_positions, batch.draft_positions.flatten() - 1)
    total.backward()
    assert model.drafter.grad is not None and model.drafter.grad.abs().sum() > 0
    assert not any(name.startswith("drafts kept") for name in shown)


def test_evaluations_draft_by_argmax_and_say_where_drafts_are_kept() -> None:
    objective = DrafterObjective(RUN).for_evaluation()
    draws = [objective.draw_row(row(index), "validation") for index in range(3)]
    batch = objective.collate_draws(draws, WHOLE)
    assert batch.draws.greedy.all()
    trained = DrafterObjective(RUN)
    assert not all(trained.draw_row(row(index), "train").draws.greedy.all() for index in range(3))
    q, loss = objective.forward_loss(TableForwards(training=False), batch)
    shown = loss(q)[2]
    assert [name for name in shown if name.startswith("drafts kept")] == [f"drafts kept up to {n}" for n in (1, 2, 3)]


def test_the_terminal_leaves_the_places_to_the_report() -> None:
    figures = {"drafter loss": 1.25, "drafts kept up to 1": 0.5}
    assert DrafterObjective(RUN).figures_text(figures) == "drafter loss 1.2500"
