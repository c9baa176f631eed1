"""Tiny model, SFT: the almanac as turns of a chat, answers alone supervised. `make demo` runs it after stage 2."""

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
        name="tiny_sft",
        output="out/demo/sft",
        init="out/demo/stage2_joint",
        model=TINY,
        diffusion=DiffusionConfig(
            alpha=0.3,  # weight of the diffusion term, as in the published joint stages
            block_size=16,  # tokens; half the published 32, for rows of a sixteenth of the published length
            mask_token_id=100,
            noise_law="uniform",  # t ~ U(0, 1) per row
            document_mask=True,  # conversations of a row do not see each other
        ),
        data=DataConfig(
            blend=("out/demo/data/chat",),  # made by `make demo` with `nld data prepare-chat --fill-blocks 16`
            tokenizer="out/demo/tokenizer",
            sequence_length=256,  # tokens
            split="98,2,0",  # one conversation in fifty: 73 rows
            chat=True,  # whole conversations packed into rows, answers supervised
            long_conversations="drop",  # most answers that would be cut lose their end mark
            workers=1,  # processes per rank; more would take the cores from the ranks
        ),
        train=TrainConfig(
            iterations=550,  # x 8 rows x 256 tokens: 1.3 times the 3,420 rows that the conversations make
            global_batch=8,  # rows
            micro_batch=4,  # rows: one micro-batch per step on each of 2 ranks
            eval_interval=275,
            eval_batches=4,  # x 8 rows
            precision="fp32",  # CPUs are slower in bf16
        ),
        optimizer=OptimizerConfig(
            lr=2e-3,  # two thirds of the stages before
            min_lr=2e-4,
            warmup_iterations=20,  # the weights come from stage 2, the optimizer starts empty
            decay_iterations=275,  # the second half
        ),
        parallel=ParallelConfig(world_size=2),
        checkpoint=CheckpointConfig(interval=275, keep=2),
        log=LogConfig(interval=10, wandb="disabled"),
    )
