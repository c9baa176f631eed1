"""One training step on the CPU: ours at both stages against Megatron-Bridge's own GPT step, side by side.

    .venv/bin/python benchmarks/step.py            # needs out/demo/data, which `make demo` prepares

All three train the tiny recipe's network on the same rows, one rank, in turns within one process, so that a busy
machine slows them alike; ratios are medians over the rounds. A step is forward, backward and optimizer.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch

from nld_train import recipe
from nld_train.config import RunConfig
from nld_train.data.indexed import TokenFile
from nld_train.dual_stream.batch import collate
from nld_train.noise.corrupt import corrupt
from nld_train.train import host, patches
from nld_train.types import Batch, Row

Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds after 3 of warm-up (default 15)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    host.install()
    patches.install()
    start_one_rank()
    stage1, stage2 = recipe.load("tiny_stage1_ar"), recipe.load("tiny_stage2_joint")
    steps = {
        "Megatron-Bridge GPT": bridge_step(stage1),
        "ours, stage 1 (AR)": our_step(stage1),
        "ours, stage 2 (joint)": our_step(stage2),
    }
    seconds = time_in_turns(steps, args.rounds)
    print_table(stage1, seconds, args)


def start_one_rank() -> None:
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    store = os.path.join(tempfile.mkdtemp(), "store")
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    init_num_microbatches_calculator(0, None, 1, 1, 1)


def rows(run: RunConfig) -> Iterator[list[Row]]:
    """Micro-batches of consecutive real text."""
    tokens = torch.from_numpy(TokenFile(run.data.blend[0]).flat.astype("int64"))
    length, count = run.data.sequence_length, run.train.micro_batch
    index = 0
    while True:
        starts = [(index + place) * length for place in range(count)]
        texts = [tokens[start : start + length + 1] for start in starts]
        yield [Row(index + place, text, torch.ones(length + 1, dtype=torch.bool)) for place, text in enumerate(texts)]
        index += count


def our_batches(run: RunConfig) -> Iterator[Batch]:
    for few in rows(run):
        noisy = [corrupt(row, run.diffusion, "train", run.train.global_batch) for row in few]
        yield collate(noisy if run.diffusion.dual else few, run.diffusion)


def our_step(run: RunConfig) -> Step:
    from nld_train.model.provider import provider
    from nld_train.train.step import loss_function

    batches = our_batches(run)

    def forward_step(_: object, model: torch.nn.Module) -> tuple[torch.Tensor, partial]:
        batch = next(batches)
        return model(batch=batch), partial(loss_function, batch, run.diffusion.alpha)

    return training_step(provider(run), run, forward_step)


def bridge_step(run: RunConfig) -> Step:
    """Megatron-Bridge's GPT model and loss on the same rows and shape."""
    from megatron.bridge.models.gpt_provider import GPTModelProvider
    from megatron.bridge.training.losses import masked_next_token_loss
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    from nld_train.model.provider import provider

    ours = provider(run)
    shape = {name: getattr(ours, name) for name in GPTModelProvider.__dataclass_fields__ if not name.startswith("_")}
    shape["transformer_layer_spec"] = lambda config, vp_stage=None: get_gpt_decoder_block_spec(
        config, use_transformer_engine=False, normalization="RMSNorm", vp_stage=vp_stage
    )
    settings = {name for name, entry in GPTModelProvider.__dataclass_fields__.items() if entry.init}
    theirs = GPTModelProvider(**{name: value for name, value in shape.items() if name in settings})
    batches = rows(run)

    def forward_step(_: object, model: torch.nn.Module) -> tuple[torch.Tensor, partial]:
        tokens = torch.stack([row.tokens for row in next(batches)])
        positions = torch.arange(run.data.sequence_length).expand(len(tokens), -1)
        nll = model(tokens[:, :-1], positions, None, labels=tokens[:, 1:])
        return nll, partial(masked_next_token_loss, torch.ones_like(nll), check_for_nan_in_loss=False)

    return training_step(theirs, run, forward_step)


def training_step(maker: object, run: RunConfig, forward_step: Callable) -> Step:
    """Megatron's own schedule, gradient buffers and optimizer around a forward step."""
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from nld_train.train.bridge_config import data_parallel, optimizer

    maker.finalize()
    model = maker.provide_distributed_model(ddp_config=data_parallel(run))
    maker.finalize_model_grads_func = finalize_model_grads
    settings = optimizer(run)
    settings.finalize()
    update = get_megatron_optimizer(settings, model)
    schedule = get_forward_backward_func()

    def step() -> None:
        for chunk in model:
            chunk.zero_grad_buffer()
        update.zero_grad()
        schedule(
            forward_step_func=forward_step,
            data_iterator=None,
            model=model,
            num_microbatches=1,
            seq_length=maker.seq_length,
            micro_batch_size=run.train.micro_batch,
            forward_only=False,
        )
        update.step()

    return step


def time_in_turns(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= 3:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def print_table(run: RunConfig, seconds: dict[str, list[float]], args: argparse.Namespace) -> None:
    bridge, stage1, stage2 = seconds.values()
    tokens = run.train.micro_batch * run.data.sequence_length
    print(f"\ntiny network, {run.train.micro_batch} rows of {run.data.sequence_length}, {args.threads} threads")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"  {name:<24}{middle * 1e3:8.1f} ms a step {tokens / middle:10,.0f} row tokens/s")
    for name, aim, above, below in (
        ("stage 1 / Bridge", 1.05, stage1, bridge),
        ("stage 2 / stage 1", 2.10, stage2, stage1),
    ):
        ratio = statistics.median(a / b for a, b in zip(above, below, strict=True))
        print(f"  {name:<24}{ratio:8.3f}    aim: at most {aim}")


if __name__ == "__main__":
    main()
