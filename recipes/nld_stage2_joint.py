"""NLD, stage 2: joint AR and diffusion pretraining on 300B tokens, from the weights of stage 1.

Runs: nld_3b_stage2_joint, nld_8b_stage2_joint, nld_14b_stage2_joint.
"""

from functools import partial

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
from nld_train.model_sizes import NLD_3B, NLD_8B, NLD_14B, SizeLayout

# Layouts for 256 H100-80GB. A row is 8,192 positions here, [noisy | clean]. Recomputation would cost a third more
# computation, and no size needs it.
SIZES = {
    "3b": SizeLayout(
        model=NLD_3B,
        tensor=1,
        micro_batch=1,
        reason="""As in stage 1 nothing is cut. One doubled row takes the 48.5 GB that two rows took there; two would
        take 72.5 GB. A step is two micro-batches on each of 256 data ranks.""",
    ),
    "8b": SizeLayout(
        model=NLD_8B,
        tensor=2,
        micro_batch=1,
        reason="""One doubled row under tensor 2 (inside a node, over NVLink) takes the 48.3 GB that two rows took in
        stage 1. Uncut it would take 95.2 GB, or 55.8 GB with full recomputation; tensor 4 would send more for memory
        that is not needed. A step is four micro-batches on each of 128 data ranks.""",
    ),
    "14b": SizeLayout(
        model=NLD_14B,
        tensor=4,
        micro_batch=2,
        reason="""tensor 2 would take 70.9 GB with one row: it fits on paper, with less room than a plan that is not yet
        measured should leave. tensor 4 (inside a node of 8, over NVLink) with sequence parallelism takes 51.0 GB with
        two rows. No pipeline, as in stage 1. A step is four micro-batches on each of 64 data ranks.""",
    ),
}


def run(size: str) -> RunConfig:
    layout = SIZES[size]
    return RunConfig(
        name=f"nld_{size}_stage2_joint",
        output=f"out/nld_{size}/stage2_joint",
        init=f"out/nld_{size}/stage1_ar",  # the output of stage 1
        model=layout.model,
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
            skip_rows=476_837
            * 512,  # stage 1's iterations x global batch: its rows are not read again; 0 on other data
            workers=4,  # processes per rank
        ),
        train=TrainConfig(
            tokens=300e9,  # [paper sec. 5]; 143,051 iterations follow
            global_batch=512,  # rows of 4,096: 2.1M tokens per step [paper sec. 5]
            micro_batch=layout.micro_batch,  # rows
            eval_interval=1000,  # steps
            eval_batches=4,  # x 512 rows
            precision="bf16",
        ),
        optimizer=OptimizerConfig(
            # The end of one schedule over stages 1 and 2, 1e-5 -> 3e-6 [paper sec. 5]: constant, then the decay.
            lr=1e-5,
            min_lr=3e-6,
            # Weights alone come from stage 1; a short warm-up of ours lets the optimizer, which starts empty, settle.
            # With init_optimizer=true optimizer.warmup_iterations=0 the moments come too, and one schedule goes on.
            warmup_iterations=500,
            # The length is not published: ours is 10 % of both stages, 0.1 x (1e12 + 300e9) tokens; 61,989 iterations.
            decay_tokens=130e9,
            weight_decay=0.1,  # [paper sec. 5]
            # Not in the paper: betas and clipping are the family's released recipe values, eps is Adam's usual one.
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_grad=1.0,  # global gradient norm
        ),
        parallel=ParallelConfig(
            world_size=256,  # GPUs [paper sec. 5]
            tensor=layout.tensor,
            sequence=layout.tensor > 1,
        ),
        checkpoint=CheckpointConfig(interval=1000, keep=3),  # steps
        log=LogConfig(interval=10),  # steps
    )


RUNS = {f"nld_{size}_stage2_joint": partial(run, size) for size in SIZES}
