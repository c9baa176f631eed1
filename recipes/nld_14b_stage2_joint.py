"""NLD 14B, stage 2: joint AR and diffusion pretraining on 300B tokens.

Parallel layout, for 256 H100-80GB (figures of `nld train nld_14b_stage2_joint --dry-run`):
A row is 8,192 positions here. tensor 2 would take 70.9 GB with one row: it fits on paper, with less room than a plan
not yet measured should leave. tensor 4 (inside a node of 8, over NVLink) with sequence parallelism takes 51.0 GB with
two rows and no recomputation. No pipeline. A step is four micro-batches on each of 64 data ranks.
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
from nld_train.model_sizes import NLD_14B


def run() -> RunConfig:
    return RunConfig(
        name="nld_14b_stage2_joint",
        output="out/nld_14b/stage2_joint",
        init="out/nld_14b/stage1_ar",  # the output of stage 1
        model=NLD_14B,
        diffusion=DiffusionConfig(
            alpha=0.3,  # weight of the diffusion term [paper sec. 5]
            block_size=32,  # tokens [release]
            mask_token_id=100,  # [release]
            noise_law="uniform",  # t ~ U(0, 1) per row [paper eq. 2]
            noise_eps=1e-3,  # p = (1 - eps) * t + eps [paper eq. 2]
            average="token",  # one denominator for the global batch [paper eq. 5]
        ),
        data=DataConfig(
            # Placeholders: make your own with `nld data prepare`, then name them here or by override. Several:
            # data.blend=0.7:data/pretrain/web,0.3:data/pretrain/code
            blend=("data/pretrain/web",),
            tokenizer="data/tokenizer",
            sequence_length=4096,  # tokens [paper sec. 5]
            workers=4,  # processes per rank
        ),
        train=TrainConfig(
            iterations=143_051,  # x 512 rows x 4,096 tokens = 300B tokens [paper sec. 5]
            global_batch=512,  # rows of 4,096: 2.1M tokens per step [paper sec. 5]
            micro_batch=2,  # rows; see the layout above
            eval_interval=1000,  # steps
            eval_batches=4,  # x 512 rows
            precision="bf16",
        ),
        optimizer=OptimizerConfig(
            # The end of one schedule over stages 1 and 2, 1e-5 -> 3e-6 [paper sec. 5]: constant,
            # then the decay. Its length is not published: ours is 10 % of both stages, 0.1 x (476,837 + 143,051).
            lr=1e-5,
            min_lr=3e-6,
            # Weights alone come from stage 1; a short warm-up of ours lets the optimizer, which starts empty, settle.
            warmup_iterations=500,
            decay_iterations=61_989,
            weight_decay=0.1,  # [paper sec. 5]
            # Not in the paper: betas and clipping are the family's released recipe values, eps is Adam's usual one.
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_grad=1.0,  # global gradient norm
        ),
        parallel=ParallelConfig(world_size=256, tensor=4, sequence=True),
        checkpoint=CheckpointConfig(interval=1000, keep=3),  # steps
        log=LogConfig(interval=10),  # steps
    )
