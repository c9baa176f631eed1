"""The drafter's objective [paper sec. 3.3]: draft with the adapter, verify without it, compare."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from nld_train.config import DrafterConfig
from nld_train.objectives.contract import ModelForwards, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.dual_stream.context_shard import ContextShard
    from nld_train.loss.drafter_loss import DraftVerdicts
    from nld_train.loss.vocabulary import VocabularyShard
    from nld_train.noise.drafter_blocks import DraftRow
    from nld_train.objectives.contract import LossFunction
    from nld_train.types import DraftBatch, Row


class DrafterObjective(Objective):
    """A LoRA on o_proj learns to draft what the frozen model's AR mode accepts."""

    section = "drafter"
    matrix_passes = 3  # draft, verify, and the backward of the inputs alone: the weights are frozen

    @property
    def adapter(self) -> DrafterConfig:
        """The LoRA that drafts, with the settings of its loss."""
        assert self.run.drafter is not None, f"{self.run.name} trains no drafter"
        return self.run.drafter

    def expected_head_rows(self) -> float:
        """As many as at most: every block drafts all its tokens."""
        return self.most_head_rows()

    def most_head_rows(self) -> int:
        """The drafted places of the row's blocks, which the verifier judges one by one."""
        size, most = self.run.diffusion.block_size, self.adapter.blocks_per_row
        blocks = self.run.data.sequence_length // size
        return (blocks if most is None else min(blocks, most)) * (size - 1)

    @property
    def whole_logits(self) -> int:
        """Those of the drafter and of the verifier, and the gradient of the former."""
        return 3

    def for_evaluation(self) -> "DrafterObjective":
        """Every block of an evaluation is drafted by argmax, as greedy decoding does."""
        return DrafterObjective(replace(self.run, drafter=replace(self.adapter, sampled_share=0.0)))

    def draw_row(self, row: "Row", purpose: str) -> "DraftRow":
        """The row with its draft blocks and their random numbers."""
        from nld_train.noise.drafter_blocks import draw_draft_blocks

        return draw_draft_blocks(row, self.adapter, self.run.diffusion, purpose)

    def collate_draws(self, draws: "Sequence[DraftRow]", shard: "ContextShard") -> "DraftBatch":
        """A micro-batch of draft blocks before the clean rows that they continue; input_ids [B, S]."""
        from nld_train.dual_stream.drafter_batch import collate_drafts

        assert shard.ranks == 1, f"{shard}: a drafter's rows stay whole"
        return collate_drafts(draws, self.run.diffusion)

    def forward_loss(self, model: ModelForwards, batch: "DraftBatch") -> "tuple[Tensor, LossFunction]":
        """The drafter's logits [R, V / ranks], R = N * n, and the drafter's loss of them."""
        from nld_train.dual_stream.drafter_batch import draft_request, verifier_request
        from nld_train.loss.drafter_loss import draw_drafts, forbid_token, judge_drafts

        shard = model.vocabulary_shard()
        # 1. Draft: every block is [seed, mask, mask, ...], and the adapter is on.
        q = model.position_logits(draft_request(batch))
        forbid_token(q, self.run.diffusion.mask_token_id, shard)
        drafted = draw_drafts(q, batch.draws, shard)
        # 2. Verify: every block is [seed, drafted tokens], read left to right by the base model.
        p = model.base_causal_logits(verifier_request(batch, drafted))
        # 3. Judge: which drafts decoding would accept. The loss compares p and q up to the first rejected one.
        verdicts = judge_drafts(p, q, drafted, batch.draws, shard)
        return q, partial(self._drafter_loss, p, verdicts, shard, model.training)

    def _drafter_loss(
        self, p: "Tensor", verdicts: "DraftVerdicts", shard: "VocabularyShard", training: bool, q: "Tensor"
    ) -> "tuple[Tensor, Tensor, dict[str, Tensor]]":
        """The numerator [], its count [] and (sum, count) pairs [2] to report, of logits p and q, [R, V / ranks] each.

        The shares that are kept place by place are reported of evaluations alone: their drafts are all greedy.
        """
        import torch

        from nld_train.loss.drafter_loss import drafter_terms
        from nld_train.loss.objective import KEPT, drafter_numerator, drafter_pairs

        mask = self.run.diffusion.mask_token_id
        sums = drafter_terms(p, q, verdicts, self.adapter, mask, shard)
        shown = {name: pair for name, pair in drafter_pairs(sums).items() if not (training and name.startswith(KEPT))}
        reported = {name: torch.stack(pair).detach() for name, pair in shown.items()}
        return drafter_numerator(sums), sums.blocks.int(), reported
