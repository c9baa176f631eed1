"""The joint objective of AR and diffusion [paper eq. 5]; with alpha 0 it is plain AR, on the clean half alone."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from nld_train.noise.mean_level import mean_mask_probability
from nld_train.objectives.contract import ModelForwards, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.dual_stream.context_shard import ContextShard
    from nld_train.objectives.contract import LossFunction
    from nld_train.types import Batch, NoisyRow, Row


class JointObjective(Objective):
    """(ar_weight * AR sum + alpha * diffusion sum) / N, with one N for both terms."""

    section = "diffusion"

    def expected_head_rows(self) -> float:
        """L clean rows, and the masked ones of the noisy half: L * E[p]. Tokens of images have none: L is L_text."""
        diffusion = self.run.diffusion
        masked = mean_mask_probability(diffusion) if diffusion.dual else 0.0
        return self.run.data.noisy_length * (1 + masked)

    def most_head_rows(self) -> int:
        """All positions of text: at noise level 1 every token of the noisy half is masked."""
        return self.run.data.noisy_length * (2 if self.run.diffusion.dual else 1)

    @property
    def drafted_rows(self) -> int:
        """train.eval_decode, where there is a noisy half to draft in, and blocks hold more than their seed. Rows with
        images are not drafted."""
        drafts = self.run.diffusion.dual and self.run.diffusion.block_size > 1 and self.run.vision is None
        return self.run.train.eval_decode if drafts else 0

    def draw_row(self, row: "Row", purpose: str) -> "NoisyRow | Row":
        """The row with its noise; the row as it is where only the clean half is run."""
        from nld_train.noise.corrupt import corrupt_row

        run = self.run
        return corrupt_row(row, run.diffusion, purpose, run.train.global_batch) if run.diffusion.dual else row

    def draw_fullest(self, row: "Row") -> "NoisyRow | Row":
        """The row with every token masked that may be."""
        from nld_train.noise.corrupt import mask_fully

        return mask_fully(row, self.run.diffusion) if self.run.diffusion.dual else row

    def collate_draws(self, draws: "Sequence[NoisyRow] | Sequence[Row]", shard: "ContextShard") -> "Batch":
        """A micro-batch of rows of one length; input_ids [B, S], with the positions and weights of both losses."""
        from nld_train.dual_stream.batch import collate_rows

        return collate_rows(draws, self.run.diffusion, shard, self.run.data.text_length, self.run.vision)

    def forward_loss(self, model: ModelForwards, batch: "Batch") -> "tuple[Tensor, LossFunction]":
        """The model's cross-entropy [R_ar + R_diff] of the batch, and the joint loss of it."""
        return model.position_nll(batch), partial(self.joint_loss, batch)

    def joint_loss(self, batch: "Batch", nll: "Tensor") -> "tuple[Tensor, Tensor, dict[str, Tensor]]":
        """The numerator [], its count [], and (sum, count) pairs [2] to report, of nll [R_ar + R_diff] of the batch.

        Megatron adds them up over all micro-batches and ranks and divides once: one denominator for both terms
        [paper eq. 5].
        """
        import torch

        from nld_train.loss.objective import loss_numerator, reported_pairs
        from nld_train.loss.terms import loss_terms

        alpha, ar_weight = self.run.diffusion.alpha, self.run.diffusion.ar_weight
        ar_nll, diffusion_nll = nll.split([batch.ar_targets.numel(), batch.diffusion_targets.numel()])
        sums = loss_terms(ar_nll, diffusion_nll, batch)
        pairs = reported_pairs(sums, alpha, ar_weight)
        shown = {"AR loss": pairs["AR loss"]} if alpha == 0 else pairs
        reported = {name: torch.stack(pair).detach() for name, pair in shown.items()}
        return loss_numerator(sums, alpha, ar_weight), sums.denominator.int(), reported
