"""NLD, stage 1: continued AR pretraining on 1T tokens. Runs: nld_3b_stage1_ar, nld_8b_stage1_ar, nld_14b_stage1_ar."""

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

# Layouts for 256 H100-80GB. Recomputation would cost a third more computation, and no size needs it.
SIZES = {
    "3b": SizeLayout(
        model=NLD_3B,
        tensor=1,
        micro_batch=2,
        reason="""One GPU holds the whole model: weights and fp32 gradients take 23.0 GB, the optimizer 0.2 GB over 256
        ranks, the activations of two rows of 4,096 positions 23.6 GB and the LM head 1.7 GB: 48.5 GB. So nothing is
        cut, and the only traffic is that of the gradients. A step is one micro-batch on each of 256 data ranks.""",
    ),
    "8b": SizeLayout(
        model=NLD_8B,
        tensor=2,
        micro_batch=2,
        reason="""On one GPU weights and fp32 gradients alone take 50.9 GB: with one row 74.1 GB, too near the edge.
        tensor 2 (inside a node, over NVLink) halves them to 25.5 GB and, with sequence parallelism, every activation
        too: two rows take 48.3 GB. A step is two micro-batches on each of 128 data ranks.""",
    ),
    "14b": SizeLayout(
        model=NLD_14B,
        tensor=2,
        micro_batch=1,
        reason="""Weights and fp32 gradients alone take 81.0 GB: the model must be cut. tensor 2 (inside a node, over
        NVLink) with sequence parallelism takes 56.6 GB with one row, 70.9 GB with two. The bubble of a pipeline would
        cost more than it saves. A step is four micro-batches on each of 128 data ranks.""",
    ),
}


def run(size: str) -> RunConfig:
    layout = SIZES[size]
    return RunConfig(
        name=f"nld_{size}_stage1_ar",
        output=f"out/nld_{size}/stage1_ar",
        init=f"checkpoints/ministral3_{size}",  # an imported Ministral-3 base; the tied 3B's embedding becomes its head
        model=layout.model,
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
            tokens=1e12,  # [paper sec. 5]; 476,837 iterations follow
            global_batch=512,  # rows of 4,096: 2.1M tokens per step [paper sec. 5]
            micro_batch=layout.micro_batch,  # rows
            eval_interval=1000,  # steps
            eval_batches=4,  # x 512 rows
            precision="bf16",
        ),
        optimizer=OptimizerConfig(
            # One schedule over stages 1 and 2, 1e-5 -> 3e-6 [paper sec. 5]: warm-up and a constant rate here, all of
            # the decay in stage 2. The lengths of warm-up and decay are not published: these are ours.
            lr=1e-5,
            min_lr=3e-6,  # reached in stage 2
            warmup_iterations=2000,  # steps, whatever their batch: the optimizer starts empty
            decay_iterations=0,
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


RUNS = {f"nld_{size}_stage1_ar": partial(run, size) for size in SIZES}
