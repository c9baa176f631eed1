"""NLD, sampler: a network of 4.8M parameters that says which predictions of a denoising step are final.

Runs: nld_3b_sampler, nld_8b_sampler, nld_14b_sampler.

Trajectories first: `nld launch sampler` collects them. The paper publishes the network's layers and width, its
features, loss and stopping by AUC, and neither data sizes, nor batch, nor learning rate: those are ours, and have not
been run at this size. The model itself is not loaded, so one node is enough.
"""

from functools import partial

from nld_train.config import (
    CheckpointConfig,
    DataConfig,
    DiffusionConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from nld_train.model_sizes import NLD_3B, NLD_8B, NLD_14B
from nld_train.objective_sections import SamplerConfig

SIZES: dict[str, ModelConfig] = {"3b": NLD_3B, "8b": NLD_8B, "14b": NLD_14B}


def run(size: str) -> RunConfig:
    return RunConfig(
        name=f"nld_{size}_sampler",
        output=f"out/nld_{size}/sampler",
        model=SIZES[size],  # whose trajectories these are; it is not loaded
        diffusion=DiffusionConfig(alpha=0),  # no noisy half
        data=DataConfig(
            blend=(f"out/nld_{size}/trajectories",),  # made by `nld launch sampler`
            tokenizer="data/tokenizer",
            sequence_length=32,  # tokens of the longest block; blocks of 8 and 32 [paper]
            split="99,1,0",  # shares of the prompts: a hundredth is held out; ours
            workers=8,  # processes per rank
        ),
        train=TrainConfig(
            iterations=40_000,  # x 512: one epoch of 20M trajectories at most; ours
            global_batch=512,  # trajectories: about 9,000 steps; ours
            micro_batch=64,  # trajectories: one micro-batch per step on each of 8 ranks
            eval_interval=1000,
            eval_batches=16,  # x 512 held-out trajectories
            precision="fp32",  # it is small
        ),
        optimizer=OptimizerConfig(
            lr=3e-4,  # ours
            min_lr=3e-5,  # ours
            warmup_iterations=500,  # ours
            decay_iterations=10_000,  # ours
            weight_decay=0.01,  # ours
        ),
        parallel=ParallelConfig(world_size=8),  # one node
        checkpoint=CheckpointConfig(interval=1000, keep=7),  # one at every evaluation: the best is exported
        log=LogConfig(interval=50),
        # 4 layers, width 384 [paper]; FFN 768 gives the paper's 4.8M parameters; 6 heads, no dropout: ours
        sampler=SamplerConfig(),
    )


RUNS = {f"nld_{size}_sampler": partial(run, size) for size in SIZES}
