"""One step of one rank of a run on fake tensors: what lies in memory at its peak.

The rank is one of as many as the run has, in process groups that send nothing. The step is not the first: Adam's
moments are there. It is the largest that can be: every token of every row is masked. It ends with the gradients; the
update itself comes when the activations are gone. What the start takes for a moment is not looked at: while the
gradient buffer is made the weights are there twice, 8 bytes a parameter in bf16.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from nld_train.config import RunConfig
from nld_train.objectives.choose import objective_of
from nld_train.objectives.contract import MicroBatch
from nld_train.rehearsal.stand_ins import fake_gpu, install_stand_ins
from nld_train.rehearsal.storage_meter import StorageMeter

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
ACTIVATIONS, HEAD, BACKWARD = "activations", "LM head", "layer backward"


@dataclass(frozen=True)
class FakeRank:
    """The parts of a rank's training."""

    model: list[torch.nn.Module]
    config: Any  # Megatron's, of the model
    optimizer: Any


def simulate_peak(run: RunConfig, rank: int) -> dict[str, int]:
    """Bytes at the peak of a step of this rank, by category. For a process of its own."""
    install_stand_ins()
    join_fake_groups(run, rank)
    batch, meter = largest_batch(run), StorageMeter(WEIGHTS)
    with fake_gpu(), meter:
        rank = build_fake_rank(run, meter)
        meter.category, meter.peak = ACTIVATIONS, {}
        _watch_phases(rank.model, meter)
        run_fake_step(run, rank, batch)
    return {category: size for category, size in meter.peak.items() if size}


def join_fake_groups(run: RunConfig, rank: int) -> None:
    """Make this process the given one of the run's ranks, with all of Megatron's process groups; nobody else is
    there, and what is sent is not received."""
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator

    cut, train = run.parallel, run.train
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(cut.world_size))
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=cut.world_size)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=cut.tensor,
        pipeline_model_parallel_size=cut.pipeline,
        virtual_pipeline_model_parallel_size=cut.virtual_pipeline if cut.virtual_pipeline > 1 else None,
        context_parallel_size=cut.context,
        create_gloo_process_groups=False,
    )
    init_num_microbatches_calculator(rank, None, train.global_batch, train.micro_batch, cut.data)


def largest_batch(run: RunConfig) -> MicroBatch:
    """A micro-batch with as many LM-head rows as there can be: all tokens are supervised, and all are masked."""
    from megatron.core import parallel_state

    from nld_train.dual_stream.context_shard import ContextShard
    from nld_train.dual_stream.fullest_row import fullest_row

    objective = objective_of(run)
    draws = [objective.draw_fullest(fullest_row(run))] * run.train.micro_batch
    return objective.collate_draws(
        draws, ContextShard(run.parallel.context, parallel_state.get_context_parallel_rank())
    )


def build_fake_rank(run: RunConfig, meter: StorageMeter) -> FakeRank:
    """The model with its gradient buffers and its optimizer, counted under their categories."""
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.optimizer import get_megatron_optimizer

    from nld_train.model.drafter_adapter import drafter_lora
    from nld_train.model.provider import model_provider
    from nld_train.train.bridge_config import data_parallel_config, optimizer_config

    maker, lora = model_provider(run), objective_of(run).adapter
    maker.finalize()
    maker.perform_initialization = False  # fake weights have no values
    if lora is not None:
        adapt = drafter_lora(lora, run.train.seed)
        maker.register_pre_wrap_hook(lambda model: adapt(model, training=True))
    # 1. Weights, and one buffer of gradients for all of them.
    model = maker.provide_distributed_model(ddp_config=data_parallel_config(run))
    buffers = [buffer for chunk in model for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]]
    meter.move((buffer.grad_data for buffer in buffers), GRADIENTS)
    # 2. The optimizer's copies and moments.
    meter.category = OPTIMIZER
    settings = optimizer_config(run)
    settings.finalize()
    optimizer = get_megatron_optimizer(settings, model, use_gloo_process_groups=False)
    for inner in (each.optimizer for each in optimizer.chained_optimizers):
        for weight in chain.from_iterable(group["params"] for group in inner.param_groups):
            inner._moments(weight)
    maker.finalize_model_grads_func = finalize_model_grads
    maker.grad_scale_func = optimizer.scale_loss
    return FakeRank(model, maker, optimizer)


def _watch_phases(model: list[torch.nn.Module], meter: StorageMeter) -> None:
    """Count what is made under the phase in which it is made."""
    from megatron.core.utils import unwrap_model

    def enter(category: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            meter.category = category

        return hook

    for chunk in unwrap_model(model):

        def behind_layers(_decoder: Any, _inputs: Any, hidden: Tensor, chunk: Any = chunk) -> None:
            if chunk.post_process:
                meter.category = HEAD
            if hidden.requires_grad:
                hidden.register_hook(enter(BACKWARD))

        chunk.register_forward_pre_hook(enter(ACTIVATIONS))
        chunk.decoder.register_forward_hook(behind_layers)


def run_fake_step(run: RunConfig, rank: FakeRank, batch: MicroBatch) -> None:
    """Forward and backward of all micro-batches, by Megatron's schedule. Two stand for all where nothing is
    pipelined: the second finds what the first leaves."""
    from megatron.core.num_microbatches_calculator import get_num_microbatches
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from nld_train.train.forward_step import MegatronForwards

    objective = objective_of(run)

    def forward_step(_rows: Iterator[Any], model: torch.nn.Module) -> tuple[Tensor, Callable]:
        return objective.forward_loss(MegatronForwards(model), batch.to(torch.device("cpu")))

    for chunk in rank.model:
        chunk.zero_grad_buffer()
    micro_batches = get_num_microbatches()
    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[None] * len(rank.model) if len(rank.model) > 1 else None,
        model=rank.model,
        num_microbatches=micro_batches if run.parallel.pipeline > 1 else min(2, micro_batches),
        seq_length=rank.config.seq_length,
        micro_batch_size=run.train.micro_batch,
        forward_only=False,
    )
