"""NLD with images, SFT: the asymmetric dual stream on image instructions, losses on the answers alone.

Runs: nld_3b_vlm_sft, nld_8b_vlm_sft, nld_14b_vlm_sft. The paper trains the 8B [paper sec. 5.3]; 3B and 14B are ours, by
the same shape.
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
from nld_train.vision_config import VisionConfig

# Layouts for 256 H100-80GB. A row is 24,576 positions here, [noisy text | clean text and images], where a doubled row
# would be 32,768.
SIZES = {
    "3b": SizeLayout(
        model=NLD_3B,
        tensor=2,
        micro_batch=1,
        reason="""Uncut it would take 101.4 GB; tensor 2 (inside a node, over NVLink) with sequence parallelism takes
        54.1 GB. Both GPUs compute the whole tower.""",
    ),
    "8b": SizeLayout(
        model=NLD_8B,
        tensor=4,
        micro_batch=1,
        reason="""tensor 2 would take 96.0 GB; tensor 4 (inside a node, over NVLink) with sequence parallelism takes
        51.8 GB. A step is four micro-batches on each of 64 data ranks.""",
    ),
    "14b": SizeLayout(
        model=NLD_14B,
        tensor=4,
        micro_batch=1,
        reason="""70.6 GB with sequence parallelism; tensor 8 would take 39.5 GB, and compute the tower on twice as many
        GPUs.""",
    ),
}


def run(size: str) -> RunConfig:
    layout = SIZES[size]
    return RunConfig(
        name=f"nld_{size}_vlm_sft",
        output=f"out/nld_{size}/vlm_sft",
        # The instruct model with tower and projector of Ministral-3-Instruct [paper sec. 5.3]: `nld convert
        # merge-vision` writes it.
        init=f"out/nld_{size}/vlm_start",
        model=layout.model,
        # The tower of Ministral-3 [its public configuration], all of it trained [paper sec. 5.3].
        vision=VisionConfig(
            train_tower=True,
            # Ours: without it the images of a row alone keep 46 GB; with it the tower (7 % of the 8B's FLOPs) runs its
            # forward once more.
            recompute=True,
            # Ours: reserved ids of the family's tokenizer. In Mistral's own tokenizer they are 10, 12 and 13, but here
            # 10 begins a turn.
            image_token_id=101,
            break_token_id=102,
            end_token_id=103,
        ),
        diffusion=DiffusionConfig(
            alpha=0.3,  # weight of the diffusion term: the same joint objective [paper sec. 5.3]
            block_size=32,  # tokens [release]
            mask_token_id=100,  # [release]
            noise_law="uniform",  # t ~ U(0, 1) per row [paper eq. 2]
            noise_eps=1e-3,  # p = (1 - eps) * t + eps [paper eq. 2]
            average="token",  # one denominator for the global batch: its supervised tokens [paper eq. 5]
            document_mask=True,  # conversations of a row do not see each other
        ),
        data=DataConfig(
            # Placeholder: make your own with `nld data prepare-chat` from image instructions (the paper's: FineVision).
            blend=("data/vlm/chat",),
            tokenizer="data/tokenizer",
            # Ours: rows of the SFT's length, half of which may be text. What a row cannot hold goes into another one:
            # `nld train` says how full the rows are, and which of the two lengths is short.
            sequence_length=16_384,  # tokens, of text and of images
            text_length=8192,  # tokens of text
            chat=True,  # whole conversations packed into rows, answers supervised
            long_conversations="drop",  # an image is never cut
            workers=8,  # processes per rank: they decode the images
        ),
        train=TrainConfig(
            tokens=45e9,  # ours: as many as the SFT of text takes; images count
            global_batch=256,  # rows of 16,384: 4.2M tokens per step, as the SFT of text
            micro_batch=layout.micro_batch,  # rows
            eval_interval=500,  # steps
            eval_batches=2,  # x 256 rows
            precision="bf16",
        ),
        optimizer=OptimizerConfig(
            # Not published for this stage: rates and schedule are those of the SFT of text.
            lr=2.5e-6,
            min_lr=2.5e-7,
            warmup_tokens=450e6,
            decay_tokens=4.5e9,
            weight_decay=0.1,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_grad=1.0,  # global gradient norm
        ),
        parallel=ParallelConfig(
            world_size=256,  # GPUs
            tensor=layout.tensor,
            sequence=layout.tensor > 1,
        ),
        checkpoint=CheckpointConfig(interval=500, keep=3),  # steps
        log=LogConfig(interval=10),  # steps
    )


RUNS = {f"nld_{size}_vlm_sft": partial(run, size) for size in SIZES}
