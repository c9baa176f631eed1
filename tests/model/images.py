"""Images for tests, and a vision run small enough to count by hand."""

from dataclasses import replace
from pathlib import Path

import torch

from nld_train.config import ParallelConfig, RunConfig
from nld_train.types import Batch, BatchImages
from nld_train.vision_config import VisionConfig
from tests.distributed.ranks import small_run

VISION = VisionConfig(
    layers=2, hidden=32, ffn=48, heads=4, patch_size=4, merge=2, longest_edge=64, theta=100.0, image_token_id=10
)
CELL = VISION.cell  # 8 pixels


def vision_run(parallel: ParallelConfig, folder: Path = Path("nowhere"), alpha: float = 0.3) -> RunConfig:
    """The small run with a tower in front of it; rows of 64 tokens, symmetric."""
    run = small_run("vision", folder, alpha=alpha, init=None, parallel=parallel)
    diffusion, data = replace(run.diffusion, document_mask=True), replace(run.data, chat=True)
    return replace(run, diffusion=diffusion, data=data, vision=VISION)


def images_of(cells: list[tuple[int, int]], positions: torch.Tensor, seed: int = 7) -> BatchImages:
    """Random images of (rows, columns) cells, padded to the largest with what must not be seen."""
    height, width = (CELL * max(sides) for sides in zip(*cells, strict=True))
    sizes = torch.tensor(cells) * CELL
    pixels = torch.randn(len(cells), 3, height, width, generator=torch.Generator().manual_seed(seed))
    return BatchImages(pixels, sizes, positions)


def batch_with_images(run: RunConfig, rows: int = 2, seed: int = 7) -> Batch:
    """A micro-batch made by hand. Each row has an image of 1 x 2 cells behind three tokens, and one of 3 x 4 cells from
    token 26 on: it lies on both sides of token 32, where the shard of another tensor rank begins. Text is supervised,
    and every fourth token of it is masked in the noisy half."""
    assert run.vision is not None
    length, mask = run.data.sequence_length, run.diffusion.mask_token_id
    clean = torch.randint(101, run.model.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    places = [3, 4, *(26 + 5 * row + column for row in range(3) for column in range(4))]
    broken = [5, 30, 35, 40]
    clean[:, places], clean[:, broken] = run.vision.image_token_id, run.vision.break_token_id
    text = clean > 100
    chosen = text[:, :-1] & (torch.arange(length) % 4 == 1)
    noisy = torch.where(chosen, mask, clean[:, :-1])
    dual = run.diffusion.dual
    start = length if dual else 0
    size = start + length
    ar_row, ar_token = text[:, 1:].nonzero(as_tuple=True)
    row, token = (chosen & dual).nonzero(as_tuple=True)
    cells = torch.cat([torch.tensor(places) + number * size + start for number in range(rows)])
    return Batch(
        input_ids=torch.cat([noisy, clean[:, :-1]], 1) if dual else clean[:, :-1],
        documents=None,
        ar_positions=ar_row * size + start + ar_token,
        ar_targets=clean[:, 1:][ar_row, ar_token],
        ar_weights=torch.ones(len(ar_row)),
        diffusion_positions=row * size + token,
        diffusion_targets=clean[row, token],
        diffusion_weights=torch.full((len(row),), 4.0),
        denominator=text[:, 1:].sum().float(),
        maskable=text[:, :-1].sum().float(),
        sample_indices=torch.arange(rows),
        images=images_of([(1, 2), (3, 4)] * rows, cells, seed),
    )


def without_images(batch: Batch) -> Batch:
    """The same rows, where the cells' tokens are embedded like any others."""
    return replace(batch, images=None)
