"""Gradients of the vision model on real gloo ranks, layout by layout. test_vision.py runs this as a module on a folder.

Megatron is imported once, and ranks are forked for every layout. Each writes FOLDER/LAYOUT, a checkpoint with the
gradients in the place of the weights, and FOLDER/LAYOUT.RANK.json, the sums of its losses. All layouts start from the
weights that the first one saves.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nld_train.config import ParallelConfig, RunConfig
from nld_train.objectives.choose import objective_of
from nld_train.train import patches
from nld_train.train.forked_rank import fork_rank, free_port
from nld_train.train.megatron_import import load_megatron
from nld_train.types import Batch
from tests.distributed.ranks import on
from tests.model.images import batch_with_images, vision_run, without_images

LAYOUTS: dict[str, ParallelConfig] = {
    "one": on(1, distributed_optimizer=False),
    "tensor2": on(2, tensor=2, distributed_optimizer=False),
    "sequence2": on(2, tensor=2, sequence=True, distributed_optimizer=False, recompute="full"),
    "pipeline2": on(2, pipeline=2, distributed_optimizer=False),
    "data2": on(2, distributed_optimizer=False),
}
FROZEN = "frozen2"  # sequence2 with a tower that is not trained
MICRO_BATCHES = 4


def main(folder: Path) -> None:
    patches.leave_wandb_out()
    load_megatron()
    for name, parallel in {**LAYOUTS, FROZEN: LAYOUTS["sequence2"]}.items():
        with tempfile.TemporaryDirectory() as scratch:
            work = partial(write_gradients, name, parallel, folder, Path(scratch) / "store")
            port, log = free_port(), folder / "log"
            ranks = range(parallel.world_size)
            children = [fork_rank(rank, len(ranks), port, log, partial(work, rank)) for rank in ranks]
            statuses = [os.waitpid(child, 0)[1] for child in children]
            if any(statuses):
                sys.exit(f"{name} failed\n{log.read_text()[-6000:]}")


def batches(run: RunConfig, rank: int, step: int) -> Iterator[Batch]:
    """A data rank's micro-batches. One of all has no image: in the first step the first, in the second the last, which
    is when the second data rank sends its gradients."""
    made = [batch_with_images(run, seed=seed) for seed in range(MICRO_BATCHES)]
    made[-step] = without_images(made[-step])
    return iter(made[rank :: run.parallel.data])


def write_gradients(name: str, parallel: ParallelConfig, folder: Path, store: Path, rank: int) -> None:
    run = vision_run(parallel)
    if name == FROZEN:
        run = replace(run, vision=replace(run.vision, train_tower=False))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=parallel.world_size
    )
    patches.hand_results_over_in_process()
    model, losses = forward_and_backward(run, folder, rank)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(weight.main_grad if weight.requires_grad else torch.zeros_like(weight))
    save_weights(model, folder / name)
    untrained = [each for each, weight in weights.items() if not weight.requires_grad]
    (folder / f"{name}.{rank}.json").write_text(json.dumps({"losses": losses, "untrained": untrained}))
    torch.distributed.barrier()


def forward_and_backward(run: RunConfig, folder: Path, rank: int) -> tuple[torch.nn.Module, dict[str, list[float]]]:
    """The model behind two steps of all micro-batches, and the (sum, count) of its losses in the second one on the last
    stage, else {}."""
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from nld_train.model.provider import model_provider
    from nld_train.train.bridge_config import data_parallel_config
    from nld_train.train.forward_step import MegatronForwards

    cut = run.parallel
    parallel_state.initialize_model_parallel(cut.tensor, cut.pipeline)
    model_parallel_cuda_manual_seed(1)
    count = MICRO_BATCHES // cut.data
    init_num_microbatches_calculator(rank, None, run.train.micro_batch * MICRO_BATCHES, run.train.micro_batch, cut.data)
    maker, objective = model_provider(run), objective_of(run)
    maker.finalize()
    # With it a data rank that lacks gradients that it had in its first step stops: all of them communicate in step.
    overlapped = replace(data_parallel_config(run), overlap_grad_reduce=cut.data > 1)
    (model,) = maker.provide_distributed_model(ddp_config=overlapped)
    if overlapped.overlap_grad_reduce:
        maker.no_sync_func = model.no_sync
    maker.finalize_model_grads_func = finalize_model_grads
    start_alike(model, folder / "weights")

    def forward_step(rows: Iterator[Batch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Callable]:
        return objective.forward_loss(MegatronForwards(chunk), next(rows))

    for step in range(2):
        model.zero_grad_buffer()
        done = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=batches(run, parallel_state.get_data_parallel_rank(), step),
            model=[model],
            num_microbatches=count,
            seq_length=maker.seq_length,
            micro_batch_size=run.train.micro_batch,
            forward_only=False,
        )
    summed: dict[str, Any] = {}
    for reported in done if parallel_state.get_tensor_model_parallel_rank() == 0 else []:
        for figure, pair in reported.items():
            summed[figure] = summed.get(figure, 0) + pair
    return model.module, {figure: pair.tolist() for figure, pair in summed.items()}


def start_alike(model: torch.nn.Module, stored: Path) -> None:
    """The weights that the first layout has saved; the first one makes them."""
    from megatron.core import dist_checkpointing

    if not stored.exists():
        torch.manual_seed(3)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        save_weights(model.module, stored)
    model.module.load_state_dict(dist_checkpointing.load(model.module.sharded_state_dict(), str(stored)))


def save_weights(model: torch.nn.Module, folder: Path) -> None:
    from megatron.core import dist_checkpointing

    folder.mkdir(exist_ok=True)
    torch.distributed.barrier()
    dist_checkpointing.save(model.sharded_state_dict(), str(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
