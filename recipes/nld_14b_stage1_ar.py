"""NLD 14B, stage 1: continued AR pretraining on 1T tokens.

Parallel layout, for 256 H100-80GB (figures of `nld train nld_14b_stage1_ar --dry-run`):
Weights and fp32 gradients alone are 81.0 GB: the model must be cut. tensor 2 (inside a node, over NVLink) with
sequence parallelism takes 56.6 GB with one row and no recomputation (70.9 GB with two). No pipeline: its bubble would
cost more than it saves. A step is four micro-batches on each of 128 data ranks.
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
        name="nld_14b_stage1_ar",
        output="out/nld_14b/stage1_ar",
        init="checkpoints/ministral3_14b",  # an imported Ministral-3 base
        model=NLD_14B,
        diffusion=DiffusionConfig(
            alpha=0.0,  # AR alone: the model is given the clean half only, and costs what plain AR costs
            block_size=32,  # tokens; unused until stage 2 [release]
            mask_token_id=100,  # [release]
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
            iterations=476_837,  # x 512 rows x 4,096 tokens = 1T tokens [paper sec. 5]
            global_batch=512,  # rows of 4,096: 2.1M tokens per step [paper sec. 5]
            micro_batch=1,  # rows; see the layout above
            eval_interval=1000,  # steps
            eval_batches=4,  # x 512 rows
            precision="bf16",
        ),
        optimizer=OptimizerConfig(
            # One schedule over stages 1 and 2, 1e-5 -> 3e-6 [paper sec. 5]: warm-up and a constant rate here, all of
            # the decay in stage 2. The lengths of warm-up and decay are not published: these are ours.
            lr=1e-5,
            min_lr=3e-6,  # reached in stage 2
            warmup_iterations=2000,
            decay_iterations=0,
            weight_decay=0.1,  # [paper sec. 5]
            # Not in the paper: betas and clipping are the family's released recipe values, eps is Adam's usual one.
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_grad=1.0,  # global gradient norm
        ),
        parallel=ParallelConfig(world_size=256, tensor=2, sequence=True),
        checkpoint=CheckpointConfig(interval=1000, keep=3),  # steps
        log=LogConfig(interval=10),  # steps
    )
