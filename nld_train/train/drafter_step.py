"""One micro-batch of the drafter: draft with the adapter, verify without it, compare."""

from collections.abc import Iterator
from functools import partial

import torch
from megatron.bridge.training.state import GlobalState
from megatron.core.models.gpt import GPTModel
from megatron.core.utils import unwrap_model
from torch import Tensor

from nld_train.config import DrafterConfig, RunConfig
from nld_train.dual_stream.drafter_batch import input_with_drafts, verifier_positions
from nld_train.loss.drafter_loss import DraftVerdicts, drafter_terms, draw_drafts, judge_drafts
from nld_train.loss.objective import KEPT, drafter_numerator, drafter_pairs
from nld_train.loss.vocabulary import VocabularyShard
from nld_train.model.drafter_adapter import verifier_mode
from nld_train.model.position_head import vocabulary_shard
from nld_train.types import DraftBatch, HeadRequest


class DrafterStep:
    """Megatron-Bridge's forward step for a drafter run."""

    def __init__(self, run: RunConfig) -> None:
        assert run.drafter is not None, f"{run.name} trains no drafter"
        self.drafter: DrafterConfig = run.drafter
        self.mask_token_id = run.diffusion.mask_token_id

    def __call__(
        self, state: GlobalState, data_iterator: Iterator[DraftBatch], model: GPTModel
    ) -> tuple[Tensor, partial]:
        batch = next(data_iterator).to(torch.cuda.current_device())
        cut = vocabulary_shard(unwrap_model(model).output_layer)
        q = self._forbid_mask(model(batch=_draft_request(batch)), cut)
        drafted = draw_drafts(q, batch.draws, cut)
        with verifier_mode(model):
            p = model(batch=_verification_request(batch, drafted))
        verdicts = judge_drafts(p, q, drafted, batch.draws, cut)
        return q, partial(self._loss, p, verdicts, cut, model.training)

    def _forbid_mask(self, logits: Tensor, cut: VocabularyShard) -> Tensor:
        """Logits [R, V / ranks] in which the mask is never drafted, as in decoding; changed in place."""
        column = self.mask_token_id - cut.offset
        if 0 <= column < logits.shape[-1]:
            logits[:, column] = -torch.inf
        return logits

    def _loss(
        self, p: Tensor, verdicts: DraftVerdicts, cut: VocabularyShard, training: bool, q: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What Megatron sums over the global batch: the numerator, its count, and (sum, count) pairs to report.

        Where drafts are kept is reported of evaluations alone: their drafts are all greedy.
        """
        drafter = self.drafter
        sums = drafter_terms(p, q, verdicts, drafter.top_k, drafter.tau, self.mask_token_id, cut)
        shown = {name: pair for name, pair in drafter_pairs(sums).items() if not (training and name.startswith(KEPT))}
        reported = {name: torch.stack(pair).detach() for name, pair in shown.items()}
        return drafter_numerator(sums), sums.blocks.int(), reported


def _draft_request(batch: DraftBatch) -> HeadRequest:
    """The forward that drafts: [seed, masks] of every block."""
    return HeadRequest(batch.input_ids, batch.documents, batch.draft_positions.flatten())


def _verification_request(batch: DraftBatch, drafted: Tensor) -> HeadRequest:
    """The forward that verifies: [seed, drafted tokens [N, n]] of every block, each read left to right."""
    return HeadRequest(input_with_drafts(batch, drafted), batch.documents, verifier_positions(batch).flatten())
