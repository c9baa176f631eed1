"""Tiny model, sampler: a network that says which predictions of a denoising step are final.

Trajectories first: `nld sampler collect out/demo/hf --prompts ... --output out/demo/trajectories`. What the paper
leaves open is ours, from the runs in LOG.md.
"""

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
from nld_train.objective_sections import SamplerConfig


def run() -> RunConfig:
    return RunConfig(
        name="tiny_sampler",
        output="out/demo/sampler",
        model=TINY,  # whose trajectories these are; it is not loaded
        diffusion=DiffusionConfig(alpha=0),  # no noisy half
        data=DataConfig(
            blend=("out/demo/trajectories",),  # made by `nld sampler collect`
            tokenizer="out/demo/tokenizer",
            sequence_length=32,  # tokens of the longest block
            split="90,10,0",  # shares of the prompts: a tenth is held out
            workers=1,  # processes per rank
        ),
        train=TrainConfig(
            iterations=600,  # at most: it ends where the held-out AUC gets no better
            global_batch=32,  # trajectories
            micro_batch=8,  # trajectories: two micro-batches per step on each of 2 ranks
            eval_interval=50,
            eval_batches=16,  # x 32 held-out trajectories
            precision="fp32",
        ),
        optimizer=OptimizerConfig(
            lr=1e-3,
            min_lr=1e-4,
            warmup_iterations=30,
            decay_iterations=200,
            weight_decay=0.01,
        ),
        parallel=ParallelConfig(world_size=2),
        checkpoint=CheckpointConfig(interval=50, keep=6),  # one at every evaluation: the best is exported
        log=LogConfig(interval=20, wandb="disabled"),
        # A third of the paper's width and fewer layers: the paper's network is as large as this model.
        sampler=SamplerConfig(layers=3, width=128, ffn=256, heads=4, patience=4),
    )
