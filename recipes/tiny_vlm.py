"""Tiny model with images: drawn pictures, questions and answers. `make demo-vlm` runs it, from random weights."""

from dataclasses import replace

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
from nld_train.vision_config import VisionConfig


def run() -> RunConfig:
    return RunConfig(
        name="tiny_vlm",
        output="out/demo_vlm/sft",
        model=replace(TINY, vocab_size=480),  # the questions and answers have few words
        vision=VisionConfig(
            layers=2,
            hidden=64,
            ffn=192,
            heads=2,
            patch_size=8,  # pixels; two by two make a cell of the drawn pictures
            longest_edge=64,  # pixels: four cells
            theta=100.0,  # eight patches a side, where the published tower has 110
            image_token_id=12,
            break_token_id=13,
            end_token_id=14,
        ),
        diffusion=DiffusionConfig(
            alpha=0.3,  # weight of the diffusion term, as in the published joint stages
            block_size=16,  # tokens
            mask_token_id=100,
            noise_law="uniform",  # t ~ U(0, 1) per row
            document_mask=True,  # conversations of a row do not see each other
        ),
        data=DataConfig(
            blend=("out/demo_vlm/data/chat",),  # made by `make demo-vlm` with `nld data prepare-chat`
            tokenizer="out/demo_vlm/tokenizer",
            sequence_length=256,  # tokens, of text and of images
            text_length=224,  # tokens of text
            split="98,2,0",
            chat=True,
            long_conversations="drop",
            workers=1,  # processes per rank; more would take the cores from the ranks
        ),
        train=TrainConfig(
            iterations=1000,
            global_batch=8,  # rows
            micro_batch=4,  # rows: one micro-batch per step on each of 2 ranks
            eval_interval=500,
            eval_batches=4,  # x 8 rows
            precision="fp32",  # CPUs are slower in bf16
        ),
        optimizer=OptimizerConfig(
            lr=2e-3,
            min_lr=1e-4,
            warmup_iterations=50,
            decay_iterations=950,  # from the warm-up on: at a constant rate features stay coarse
        ),
        parallel=ParallelConfig(world_size=2),
        checkpoint=CheckpointConfig(interval=500, keep=2),
        log=LogConfig(interval=10, wandb="disabled"),
    )
