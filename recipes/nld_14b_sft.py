"""NLD 14B, SFT: joint AR and diffusion training on conversations, 45B tokens, losses on the answers alone.

Parallel layout, for 256 H100-80GB (figures of `nld train nld_14b_sft --dry-run`):
A row is 32,768 positions here: with tensor 4 it would take 80.2 GB. tensor 8 (a whole node, over NVLink) with sequence
parallelism takes 42.0 GB, with no recomputation, which would cost a third more computation, and without context
parallelism. A step is eight micro-batches of one row on each of 32 data ranks.
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
        name="nld_14b_sft",
        output="out/nld_14b/sft",
        init="out/nld_14b/stage2_joint",  # the output of stage 2, or a Hugging Face folder
        model=NLD_14B,
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
            # Placeholders: make your own with `nld data prepare-chat`, then name them here or by override. Several:
            # data.blend=0.7:data/sft/chat,0.3:data/sft/code
            blend=("data/sft/chat",),
            tokenizer="data/tokenizer",
            sequence_length=16_384,  # tokens [paper sec. 5]
            chat=True,  # whole conversations packed into rows, answers supervised
            long_conversations="cut",  # those longer than a row lose their end
            workers=4,  # processes per rank
        ),
        train=TrainConfig(
            iterations=10_729,  # x 256 rows x 16,384 tokens = 45B tokens [paper sec. 5]
            global_batch=256,  # rows of 16,384: 4.2M tokens per step [paper sec. 5]
            micro_batch=1,  # rows; see the layout above
            eval_interval=500,  # steps
            eval_batches=2,  # x 256 rows
            precision="bf16",
        ),
        optimizer=OptimizerConfig(
            # 2.5e-6 -> 2.5e-7, warm-up, stable, decay [paper sec. 5]. The lengths of warm-up and decay are not
            # published: these are ours, 1 % and 10 % of the steps.
            lr=2.5e-6,
            min_lr=2.5e-7,
            warmup_iterations=107,
            decay_iterations=1073,
            weight_decay=0.1,  # [paper sec. 5]
            # Not in the paper: betas and clipping are the family's released recipe values, eps is Adam's usual one.
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_grad=1.0,  # global gradient norm
        ),
        parallel=ParallelConfig(world_size=256, tensor=8, sequence=True),
        checkpoint=CheckpointConfig(interval=500, keep=3),  # steps
        log=LogConfig(interval=10),  # steps
    )
