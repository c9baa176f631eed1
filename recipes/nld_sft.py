"""NLD, SFT: joint AR and diffusion training on conversations, 45B tokens, losses on the answers alone.

Runs: nld_3b_sft, nld_8b_sft, nld_14b_sft.
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

# Layouts for 256 H100-80GB. A row is 32,768 positions here, [noisy | clean]. No size needs recomputation, which would
# cost a third more computation, or context parallelism.
SIZES = {
    "3b": SizeLayout(
        model=NLD_3B,
        tensor=2,
        micro_batch=1,
        reason="""Uncut, the activations of a row alone would take 94 GB; tensor 2 (inside a node, over NVLink) with
        sequence parallelism takes 61.4 GB. A step is two micro-batches on each of 128 data ranks.""",
    ),
    "8b": SizeLayout(
        model=NLD_8B,
        tensor=4,
        micro_batch=1,
        reason="""tensor 2 would take 112.4 GB; tensor 4 (inside a node, over NVLink) with sequence parallelism takes
        57.8 GB. A step is four micro-batches on each of 64 data ranks.""",
    ),
    "14b": SizeLayout(
        model=NLD_14B,
        tensor=8,
        micro_batch=1,
        reason="""tensor 4 would take 80.2 GB; tensor 8 (a whole node, over NVLink) with sequence parallelism takes
        42.0 GB. A step is eight micro-batches on each of 32 data ranks.""",
    ),
}


def run(size: str) -> RunConfig:
    layout = SIZES[size]
    return RunConfig(
        name=f"nld_{size}_sft",
        output=f"out/nld_{size}/sft",
        init=f"out/nld_{size}/stage2_joint",  # the output of stage 2, or a Hugging Face folder
        model=layout.model,
        diffusion=DiffusionConfig(
            alpha=0.3,  # weight of the diffusion term [paper sec. 5]
            block_size=32,  # tokens [release]
            mask_token_id=100,  # [release]
            noise_law="uniform",  # t ~ U(0, 1) per row [paper eq. 2]
            noise_eps=1e-3,  # p = (1 - eps) * t + eps [paper eq. 2]
            average="token",  # one denominator for the global batch: its supervised tokens [paper eq. 5]
            document_mask=True,  # conversations of a row do not see each other
        ),
        data=DataConfig(
            # Placeholders: make your own with `nld data prepare-chat --fill-blocks 32`, then name them here or by
            # override. Several: data.blend=0.7:data/sft/chat,0.3:data/sft/code
            blend=("data/sft/chat",),
            tokenizer="data/tokenizer",
            sequence_length=16_384,  # tokens [paper sec. 5]
            chat=True,  # whole conversations packed into rows, answers supervised
            long_conversations="cut",  # those longer than a row lose their end
            workers=4,  # processes per rank
        ),
        train=TrainConfig(
            tokens=45e9,  # [paper sec. 5]; 10,729 iterations follow
            global_batch=256,  # rows of 16,384: 4.2M tokens per step [paper sec. 5]
            micro_batch=layout.micro_batch,  # rows
            eval_interval=500,  # steps
            eval_batches=2,  # x 256 rows
            precision="bf16",
        ),
        optimizer=OptimizerConfig(
            # 2.5e-6 -> 2.5e-7, warm-up, stable, decay [paper sec. 5]. The lengths of warm-up and decay are not
            # published: these are ours, 1 % and 10 % of the tokens (107 and 1,073 iterations).
            lr=2.5e-6,
            min_lr=2.5e-7,
            warmup_tokens=450e6,
            decay_tokens=4.5e9,
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
        checkpoint=CheckpointConfig(interval=500, keep=3),  # steps
        log=LogConfig(interval=10),  # steps
    )


RUNS = {f"nld_{size}_sft": partial(run, size) for size in SIZES}
