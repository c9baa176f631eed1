"""Tiny model, stage 2: joint AR and diffusion training from stage 1's weights. `make demo` runs it second."""

from nld_train.config import (
    CheckpointConfig,
    DataConfig,
    DiffusionConfig,
    LogConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from nld_train.model_sizes import TINY


def run() -> RunConfig:
    return RunConfig(
        name="tiny_stage2_joint",
        output="out/demo/stage2_joint",
        init="out/demo/stage1_ar",
        model=TINY,
        diffusion=DiffusionConfig(
            alpha=0.3,  # weight of the diffusion term, as in the published joint stages
            block_size=16,  # tokens; half the published 32, for rows of a sixteenth of the published length
            mask_token_id=100,
            noise_law="uniform",  # t ~ U(0, 1) per row
        ),
        data=DataConfig(
            blend=("out/demo/data/almanac",),  # the files of stage 1
            tokenizer="out/demo/tokenizer",
            sequence_length=256,  # tokens
            skip_rows=300 * 8,  # stage 1's iterations x global batch: its rows are not read again
            workers=1,  # processes per rank; more would take the cores from the ranks
        ),
        train=TrainConfig(
            iterations=400,  # x 8 rows x 256 tokens = 0.8M tokens: with stage 1, 2.7 times all
            global_batch=8,  # rows
            micro_batch=4,  # rows: one micro-batch per step on each of 2 ranks
            eval_interval=200,
            eval_batches=2,  # x 8 rows
            precision="fp32",  # CPUs are slower in bf16
        ),
        optimizer=OptimizerConfig(
            lr=3e-3,  # where stage 1 ended
            min_lr=3e-4,
            warmup_iterations=10,  # the weights come from stage 1, the optimizer starts empty
            decay_iterations=100,  # the last quarter
        ),
        parallel=ParallelConfig(world_size=2),
        checkpoint=CheckpointConfig(interval=200, keep=2),
        log=LogConfig(interval=10, wandb="disabled"),
    )
