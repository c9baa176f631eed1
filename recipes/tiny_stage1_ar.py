"""Tiny model, stage 1: plain AR training on the almanac, a minute on two CPU cores. `make demo` runs it first."""

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
        name="tiny_stage1_ar",
        output="out/demo/stage1_ar",
        model=TINY,
        diffusion=DiffusionConfig(
            alpha=0.0,  # AR alone: the model is given the clean half only
            block_size=16,  # tokens; half the published 32, for rows of a sixteenth of the published length
            mask_token_id=100,
        ),
        data=DataConfig(
            blend=("out/demo/data/almanac",),  # made by `make demo` with `nld data prepare`
            tokenizer="out/demo/tokenizer",  # byte-level BPE of 2,048, made by `make demo`
            sequence_length=256,  # tokens
            workers=1,  # processes per rank; more would take the cores from the ranks
        ),
        train=TrainConfig(
            iterations=300,  # x 8 rows x 256 tokens = 0.6M tokens, 1.2 times all
            global_batch=8,  # rows; small, because in a run this short steps are worth more than rows
            micro_batch=4,  # rows: one micro-batch per step on each of 2 ranks
            eval_interval=150,
            eval_batches=2,  # x 8 rows, of the 21 that the validation documents fill
            precision="fp32",  # CPUs are slower in bf16
        ),
        optimizer=OptimizerConfig(
            lr=3e-3,
            min_lr=3e-4,
            warmup_iterations=20,
            decay_iterations=0,  # all of the decay lies in stage 2
        ),
        parallel=ParallelConfig(world_size=2),
        checkpoint=CheckpointConfig(interval=150, keep=2),
        log=LogConfig(interval=10, wandb="disabled"),
    )
