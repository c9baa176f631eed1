"""NLD, drafter: LoRA on o_proj, so that the drafts of self-speculation agree with the frozen model's AR mode.

Runs: nld_3b_drafter, nld_8b_drafter, nld_14b_drafter.

The paper publishes the adapter, its loss and its gain, and neither data, nor steps, nor learning rate, nor batch: those
are ours, chosen after the tiny model's sweep in LOG.md, and have not been run at this size.
"""

from functools import partial

from nld_train.config import (
    CheckpointConfig,
    DataConfig,
    DiffusionConfig,
    DrafterConfig,
    LogConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from nld_train.model_sizes import NLD_3B, NLD_8B, NLD_14B, SizeLayout

# Layouts for 32 H100-80GB. A row is 8,192 positions, [noisy | clean]. Frozen weights have neither gradients nor
# optimizer states, and no size needs recomputation.
SIZES = {
    "3b": SizeLayout(
        model=NLD_3B,
        tensor=1,
        micro_batch=1,
        reason="Uncut a row takes 33.0 GB. A step is four micro-batches on each of 32 data ranks.",
    ),
    "8b": SizeLayout(
        model=NLD_8B,
        tensor=2,
        micro_batch=1,
        reason="""Uncut a row takes 55.1 GB; tensor 2 with sequence parallelism takes 27.7 GB. A step is eight
        micro-batches on each of 16 data ranks.""",
    ),
    "14b": SizeLayout(
        model=NLD_14B,
        tensor=2,
        micro_batch=1,
        reason="""Uncut a row takes 74.9 GB; tensor 2 with sequence parallelism takes 37.6 GB. A step is eight
        micro-batches on each of 16 data ranks.""",
    ),
}


def run(size: str) -> RunConfig:
    layout = SIZES[size]
    return RunConfig(
        name=f"nld_{size}_drafter",
        output=f"out/nld_{size}/drafter",
        init=f"out/nld_{size}/sft",  # frozen
        model=layout.model,
        diffusion=DiffusionConfig(
            alpha=0.3,  # as in the stages before; the drafter's loss does not use it
            block_size=32,  # tokens: a seed and 31 drafts [release]
            mask_token_id=100,  # [release]
            document_mask=True,  # conversations of a row do not see each other
        ),
        data=DataConfig(
            blend=("data/sft/chat",),  # the conversations of SFT; ours
            tokenizer="data/tokenizer",
            sequence_length=4096,  # tokens; ours
            chat=True,  # whole conversations packed into rows; drafts are made where the answers stand
            long_conversations="cut",  # those longer than a row lose their end
            workers=4,  # processes per rank
        ),
        train=TrainConfig(
            iterations=2000,  # x 128 rows: at most 33M draft blocks; ours
            global_batch=128,  # rows: at most 16,384 draft blocks; ours
            micro_batch=layout.micro_batch,  # rows
            eval_interval=100,  # steps
            eval_batches=1,  # x 128 rows
            precision="bf16",
        ),
        optimizer=OptimizerConfig(
            lr=3e-4,  # ours
            min_lr=3e-5,  # ours
            warmup_iterations=100,  # ours
            decay_iterations=1000,  # the second half; ours
            weight_decay=0.0,  # ours: the adapter starts at zero, and decay would pull it back there
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_grad=1.0,  # global gradient norm
        ),
        parallel=ParallelConfig(
            world_size=32,  # GPUs; ours
            tensor=layout.tensor,
            sequence=layout.tensor > 1,
        ),
        checkpoint=CheckpointConfig(interval=500, keep=3),  # steps
        log=LogConfig(interval=10),  # steps
        drafter=DrafterConfig(
            rank=128,  # [release]
            alpha=512.0,  # [release]
            tau=3.0,  # [paper sec. 3.3]
            top_k=200,  # [paper sec. 3.3]
            sampled_share=0.9,  # [paper sec. 3.3]
        ),
    )


RUNS = {f"nld_{size}_drafter": partial(run, size) for size in SIZES}
