"""What a joint run is steered by: how many tokens greedy linear self-speculation would add, on a few held-out rows.

Every whole block of a row is a held-out prompt, the text before it. One forward drafts all blocks of a row in the noisy
half, the next one reads the drafts there left to right, as the drafter's objective does; nothing is decoded token by
token. The model, the random numbers and the loader of the training are left as they were.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import TextIO

import torch
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.utils.pg_utils import get_pg_collection
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.utils import is_pp_last_stage
from megatron.core.utils import get_model_config, unwrap_model
from torch import Tensor, nn

from nld_train.config import DrafterConfig, RunConfig
from nld_train.dual_stream.context_shard import ContextShard, shard_request
from nld_train.dual_stream.drafter_batch import collate_drafts, draft_request, verifier_request
from nld_train.loss.drafter_loss import accepted_drafts, count_kept_by_place, greedy_draft_ids
from nld_train.loss.objective import decoding_figures
from nld_train.loss.vocabulary import VocabularyShard, largest_token_ids
from nld_train.model.drafter_adapter import verifier_mode
from nld_train.model.position_head import vocabulary_shard
from nld_train.noise.drafter_blocks import draw_draft_blocks
from nld_train.objectives.choose import objective_of
from nld_train.train.dataset import RunRows
from nld_train.train.terminal import tell_line
from nld_train.types import DraftBatch, HeadRequest

GREEDY = DrafterConfig(sampled_share=0.0)  # every block that can be drafted, by argmax
# From logits [R, V / ranks] of this rank to token ids [R].
ReadTokens = Callable[[Tensor, VocabularyShard], Tensor]


class DraftEvaluation(Callback):
    """Adds the figures of greedy self-speculation to those of an evaluation, wherever they are shown.

    It must stand before the callback that reports: it adds to the dictionary that this one reads, and that
    Megatron-Bridge then gives to W&B and TensorBoard.
    """

    def __init__(self, run: RunConfig, terminal: TextIO) -> None:
        self.run, self.terminal = run, terminal
        self.wanted = objective_of(run).drafted_rows
        self.evaluated: int | None = None  # step of the last evaluation

    def on_eval_end(self, context: CallbackContext) -> None:
        """Draft and judge, once a step: the loop evaluates twice where the last step is an evaluation's."""
        step = context.state.train_state.step
        if not self.wanted or step == self.evaluated:
            return
        self.evaluated = step
        kept, blocks = self._measure(context).split([self.run.diffusion.block_size - 1, 1])
        if not is_pp_last_stage(get_pg_collection(context.model).pp):  # the losses are known to the last stage alone
            return
        if blocks:
            assert context.total_loss_dict is not None, "an evaluation that ends has losses"
            context.total_loss_dict.update(decoding_figures(kept, blocks[0]))
        elif torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            tell_line(self.terminal, f"step {step}: train.eval_decode={self.wanted} rows hold no block to draft")

    def _measure(self, context: CallbackContext) -> Tensor:
        """Blocks of all ranks' rows whose drafts are kept up to each place [n], and how many blocks there are: [n + 1]
        float32; it counts on the last pipeline stage."""
        groups, places = get_pg_collection(context.model), self.run.diffusion.block_size - 1
        counts = torch.zeros(places + 1, device=torch.cuda.current_device())
        batches = self._own_batches(context)
        if batches:
            # 1. Draft; every pipeline stage is told the drafts.
            forwards = partial(_run_forwards, context)
            mask = self.run.diffusion.mask_token_id
            drafted = forwards(list(map(draft_request, batches)), partial(_draft, mask))
            # 2. Verify, and judge by the verifier's argmax.
            judged = [verifier_request(*each) for each in zip(batches, _as_blocks(drafted, batches), strict=True)]
            with verifier_mode(nn.ModuleList(context.model)):
                best = forwards(judged, _best)
            accepted = accepted_drafts((torch.cat(drafted) == torch.cat(best)).view(-1, places))
            counts = torch.cat([count_kept_by_place(accepted, places), counts.new_tensor([len(accepted)])])
        torch.distributed.all_reduce(counts, group=groups.dp)
        return counts

    def _own_batches(self, context: CallbackContext) -> list[DraftBatch]:
        """This data rank's share of the rows, one row a batch; those without a block to draft are left out."""
        rows = context.state.cfg.dataset.validation_rows
        assert isinstance(rows, RunRows), "the rows are built before training starts"
        data = get_pg_collection(context.model).dp
        numbers = range(data.rank(), min(self.wanted, rows.repeat_after), data.size())
        drawn = [draw_draft_blocks(rows.plain_row(one), GREEDY, self.run.diffusion, rows.purpose) for one in numbers]
        device = torch.cuda.current_device()
        return [collate_drafts([row], self.run.diffusion).to(device) for row in drawn if len(row.seeds)]


def _draft(mask: int, logits: Tensor, shard: VocabularyShard) -> Tensor:
    """The drafts of logits [R, V / ranks]: [R] int64."""
    return greedy_draft_ids(logits, mask, shard)


def _best(logits: Tensor, shard: VocabularyShard) -> Tensor:
    """The verifier's own tokens, of logits [R, V / ranks]: [R] int64."""
    return largest_token_ids(logits, 1, shard)[:, 0]


def _as_blocks(drafted: Sequence[Tensor], batches: Sequence[DraftBatch]) -> list[Tensor]:
    """Drafts [R] of every batch, as [N, n]."""
    return [tokens.view_as(batch.draft_positions) for tokens, batch in zip(drafted, batches, strict=True)]


def _run_forwards(context: CallbackContext, requests: Sequence[HeadRequest], read: ReadTokens) -> list[Tensor]:
    """One forward of the model for each request, without gradients, under any layout.

    Returns: the token ids [R] that `read` makes of each request's logits, the same on every rank of the model.
    """
    groups, config = get_pg_collection(context.model), context.state.cfg.model
    # 1. A context rank is given its part of a row, and its share of the R positions.
    shard = ContextShard(groups.cp.size(), groups.cp.rank())
    shares = [shard_request(request, config.layout, shard) for request in requests]
    # 2. Megatron's own schedule. With several chunks a stage, it wants a multiple of the stages: the last request is
    #    then run again, and what comes of it is left out.
    chunks, parts = len(context.model), [part for _, part in shares]
    parts += repeat(parts[-1], -len(parts) % groups.pp.size()) if chunks > 1 else []
    iterators = [iter(parts) for _ in range(chunks)]

    def step(requested: Iterator[HeadRequest], model: nn.Module) -> tuple[Tensor, Callable]:
        return model(batch=next(requested)), partial(_read_output, model, read)

    schedule = get_forward_backward_func(pp_size=groups.pp.size(), vp_size=chunks if chunks > 1 else None)
    with torch.no_grad():
        found: list[Tensor] = schedule(
            forward_step_func=step,
            data_iterator=iterators if chunks > 1 else iterators[0],
            model=context.model,
            num_microbatches=len(parts),
            seq_length=config.seq_length,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
            p2p_communicator=P2PCommunicator(pp_group=groups.pp, config=get_model_config(context.model[0])),
            pg_collection=groups,
        )
    # 3. The last stage tells the others, and context ranks put their shares together.
    tokens = []
    for number, (kept, _) in enumerate(shares):
        whole = torch.zeros_like(kept, dtype=torch.int64)
        if is_pp_last_stage(groups.pp):
            whole[kept] = found[number]
        for group in (groups.pp, groups.cp):
            torch.distributed.all_reduce(whole, group=group)
        tokens.append(whole)
    return tokens


def _read_output(model: nn.Module, read: ReadTokens, logits: Tensor, non_loss_data: bool) -> Tensor:
    """Megatron calls this at the last stage with logits [R, V / ranks]; the ids [R] go into its list of outputs."""
    assert non_loss_data, "these forwards have no loss"
    return read(logits, vocabulary_shard(unwrap_model(model).output_layer))
