"""Tiny model, drafter: LoRA on o_proj, so that the drafts of self-speculation agree with the frozen model's AR mode.

What the paper leaves open is ours, from the sweep in LOG.md: learning rate, schedule, steps, batch and data.
"""

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
from nld_train.model_sizes import TINY


def run() -> RunConfig:
    return RunConfig(
        name="tiny_drafter",
        output="out/demo/drafter",
        init="out/demo/stage2_joint",  # frozen
        model=TINY,
        diffusion=DiffusionConfig(
            alpha=0.3,  # as in stage 2; the drafter's loss does not use it
            block_size=16,  # tokens: a seed and 15 drafts, the block of stage 2
            mask_token_id=100,
        ),
        data=DataConfig(
            blend=("out/demo/data/almanac",),  # the files of stages 1 and 2
            tokenizer="out/demo/tokenizer",
            sequence_length=256,  # tokens
            workers=1,  # processes per rank; more would take the cores from the ranks
        ),
        train=TrainConfig(
            iterations=200,  # ours
            global_batch=8,  # rows: 128 draft blocks; ours
            micro_batch=4,  # rows: one micro-batch per step on each of 2 ranks
            eval_interval=50,
            eval_batches=4,  # x 8 rows: 512 held-out prompts, from the 21 rows that there are, 1.5 times
            precision="fp32",  # CPUs are slower in bf16
        ),
        optimizer=OptimizerConfig(
            lr=3e-3,  # ours
            min_lr=1e-4,  # ours
            warmup_iterations=10,  # ours
            decay_iterations=100,  # the second half; ours
            weight_decay=0.0,  # ours: the adapter starts at zero, and decay would pull it back there
        ),
        parallel=ParallelConfig(world_size=2),
        checkpoint=CheckpointConfig(interval=100, keep=2),
        log=LogConfig(interval=10, wandb="disabled"),
        # rank 128, alpha 512 [release]; tau 3, top 200, 90 % sampled [paper sec. 3.3]
        drafter=DrafterConfig(),
    )
