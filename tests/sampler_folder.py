"""Collections of trajectories that were made by no model, for tests of what trains on them."""

import json
from pathlib import Path

import torch

from nld_train.hf.sampler_features_nemotron_labs_diffusion import STATISTICS
from nld_train.objective_sections import POLICIES
from nld_train.sampler.collect import write_index
from nld_train.trajectories.embedding_pca import fit_embedding_pca
from nld_train.trajectories.stored_parts import (
    MANIFEST,
    PCA,
    PlacedTrajectory,
    group_name,
    write_part,
    write_pca,
)
from nld_train.trajectories.trajectory import SEED, Trajectory

VOCABULARY, HIDDEN, PART, BLOCKS, END = 400, 64, 4, (4, 6), 11


def made_way(length: int, seed: int) -> Trajectory:
    """A trajectory in a random order, whose first statistic says whether the prediction is right, with some noise."""
    draw = torch.Generator().manual_seed(seed)
    final = torch.randint(VOCABULARY, (length,), dtype=torch.int32, generator=draw)
    committed = torch.cat([torch.tensor([SEED]), torch.randperm(length - 1, generator=draw)]).short()
    positions = int((committed.long() + 1).sum())
    way = Trajectory(
        final,
        committed,
        torch.randint(VOCABULARY, (positions, 3), dtype=torch.int32, generator=draw),
        torch.rand(positions, 12, generator=draw).half(),
    )
    right = torch.rand(positions, generator=draw) < 0.5
    way.top[right, 0] = final.expand(way.step_masks().shape)[way.step_masks()][right]
    way.statistics[:, 0] = (0.5 * right + 0.5 * way.statistics[:, 0]).half()
    return way


def write_collection(folder: Path, prompts: int = 12, blocks: int = 3) -> Path:
    """`blocks` blocks of every length behind each of so many prompts, by both policies."""
    folder.mkdir(parents=True)
    parts = -(-prompts // PART)
    known = {"parts": parts, "prompts_read": prompts + 1, "duplicates": 1, "statistics": list(STATISTICS)}
    (folder / MANIFEST).write_text(json.dumps(known | {"blocks": BLOCKS, "policies": POLICIES}))
    torch.manual_seed(0)
    write_pca(folder, fit_embedding_pca(torch.randn(VOCABULARY, HIDDEN)))
    assert (folder / PCA).is_file()
    seed = 0
    for part in range(parts):
        groups: dict[str, list[PlacedTrajectory]] = {}
        for policy in POLICIES:
            for length in BLOCKS:
                placed = groups.setdefault(group_name(policy, length), [])
                for prompt in range(part * PART, min((part + 1) * PART, prompts)):
                    for block in range(blocks):
                        placed.append(PlacedTrajectory(prompt, 1, block, made_way(length, seed)))
                        seed += 1
        write_part(folder, part, groups, (END,))
    write_index(folder, parts)
    return folder
