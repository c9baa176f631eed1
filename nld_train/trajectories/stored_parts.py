"""Trajectories on disk: a folder of parts, each a safetensors file and a JSON file of its counts, which comes last.

    manifest.json               what is collected, of which model, and how
    pca.safetensors             mean, basis, scale, explained; coordinates [V, P] float16, one line for each token
    part-00000.safetensors      the trajectories of some prompts
    part-00000.json             their counts, the ids that end a text, and the SHA-256 of the file; written last
    index.json                  the same of all parts; written when the last one is there

A part holds the groups POLICY.B, and of each, with N trajectories of B tokens and M masked places of all their steps:

    prompt, turn, block [N] int32     where a trajectory is from: numbers of the manifest's prompts from 0 on, turns
                                      from 1 on, blocks from 0 on
    final [N, B] int32                the tokens in the end
    committed [N, B] int16            the step that committed each, from 0 on, and -1 of the seed: place j is masked at
                                      step s iff committed[j] >= s
    top [M, 3] int32                  the three most probable tokens, by trajectory, step and masked place
    statistics [M, 12] float16        of STATISTICS in hf/sampler_features_nemotron_labs_diffusion.py, in their order

Embeddings are not stored: `coordinates` gives them, an eighth of the bytes. Labels are top[:, 0] = the final token.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nld_train.errors import UserError, require
from nld_train.files import full_disk_refused
from nld_train.json_file import read_json_object
from nld_train.trajectories.embedding_pca import EmbeddingPCA
from nld_train.trajectories.trajectory import Trajectory

MANIFEST, INDEX, PCA = "manifest.json", "index.json", "pca.safetensors"
COLLECTION = "a folder of `nld sampler collect`"


@dataclass(frozen=True)
class PlacedTrajectory:
    """A trajectory, and where it is from."""

    prompt: int
    turn: int
    block: int
    trajectory: Trajectory


Groups = Mapping[str, Sequence[PlacedTrajectory]]  # "POLICY.B" -> its trajectories


def group_name(policy: str, length: int) -> str:
    return f"{policy}.{length}"


def pack_groups(groups: Groups) -> dict[str, Tensor]:
    """The tensors of a part, with the shapes of this page: [N], [N, B], [M, 3], [M, 12]; a group without trajectories
    has none."""
    tensors: dict[str, Tensor] = {}
    for name, placed in groups.items():
        if not placed:
            continue
        for field in ("prompt", "turn", "block"):
            tensors[f"{name}.{field}"] = torch.tensor([vars(each)[field] for each in placed], dtype=torch.int32)
        for field in ("final", "committed"):
            tensors[f"{name}.{field}"] = torch.stack([vars(each.trajectory)[field] for each in placed])
        for field in ("top", "statistics"):
            tensors[f"{name}.{field}"] = torch.cat([vars(each.trajectory)[field] for each in placed])
    return tensors


def unpack_groups(tensors: Mapping[str, Tensor]) -> dict[str, list[PlacedTrajectory]]:
    """The trajectories that `pack_groups` packed. tensors: [N], [N, B], [M, 3], [M, 12] of every group."""
    groups: dict[str, list[PlacedTrajectory]] = {}
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        field = {key.rpartition(".")[2]: tensors[key] for key in tensors if key.rpartition(".")[0] == name}
        sizes = (field["committed"].long() + 1).sum(1).tolist()  # a place is masked in so many steps
        tops, statistics = field["top"].split(sizes), field["statistics"].split(sizes)
        ways = map(Trajectory, field["final"], field["committed"], tops, statistics)
        places = (field[key].tolist() for key in ("prompt", "turn", "block"))
        groups[name] = list(map(PlacedTrajectory, *places, ways))
    return groups


def count_groups(groups: Groups) -> dict[str, dict[str, int]]:
    """Of every group: trajectories, steps, masked positions of all steps, and how many of these are labelled right."""
    counts = {}
    for name, placed in groups.items():
        ways = [each.trajectory for each in placed]
        counts[name] = {
            "trajectories": len(ways),
            "steps": sum(len(way.step_masks()) for way in ways),
            "positions": sum(len(way.top) for way in ways),
            "right": sum(int(way.right_predictions().sum()) for way in ways),
        }
    return counts


def part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.safetensors"


def part_counts_path(folder: Path, number: int) -> Path:
    return part_path(folder, number).with_suffix(".json")


def write_part(folder: Path, number: int, groups: Groups, ends: Sequence[int]) -> None:
    """Write a part, then its counts: it is there when they are. ends: the ids that end a text of this model."""
    content, path = save(pack_groups(groups)), part_path(folder, number)
    write_whole_file(path, content)
    counts = {
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "ends": list(ends),
        "groups": count_groups(groups),
    }
    write_whole_file(part_counts_path(folder, number), json_text(counts))


def read_part(folder: Path, number: int) -> dict[str, list[PlacedTrajectory]]:
    """The trajectories of a part. Raises: UserError where it is missing, unfinished or damaged."""
    return unpack_groups(load(checked_part(folder, number)))


def checked_part(folder: Path, number: int) -> bytes:
    """The bytes of a part, which are those that were written. Raises: UserError."""
    counts = read_json_object(part_counts_path(folder, number), COLLECTION)
    path = part_path(folder, number)
    require(path.is_file(), f"no {path.name} in {folder}", COLLECTION, "remove its .json too, and collect again")
    content = path.read_bytes()
    same = hashlib.sha256(content).hexdigest() == counts.get("sha256")
    require(same, f"{path} is not as it was written", "a whole part", "remove it and its .json, and collect again")
    return content


def write_pca(folder: Path, pca: EmbeddingPCA) -> None:
    """Record the PCA of the model's embedding."""
    numbers = {name: torch.tensor(vars(pca)[name], dtype=torch.float64) for name in ("scale", "explained")}
    tensors = {"mean": pca.mean, "basis": pca.basis.contiguous(), "coordinates": pca.coordinates}
    write_whole_file(folder / PCA, save({**numbers, **tensors}))


def read_pca(folder: Path) -> EmbeddingPCA:
    """The recorded PCA. Raises: UserError."""
    path = folder / PCA
    require(path.is_file(), f"no {PCA} in {folder}", COLLECTION, "collect again: it is fitted anew")
    try:
        found = load(path.read_bytes())
    except SafetensorError as error:
        raise UserError(f"{path}: {error}", COLLECTION, "remove it, and collect again") from error
    scale, explained = float(found["scale"]), float(found["explained"])
    return EmbeddingPCA(found["mean"], found["basis"], scale, explained, found["coordinates"])


def json_text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_whole_file(path: Path, content: bytes) -> None:
    """Write a file whole. Shards that write the same file at once all do, under names of their own."""
    with full_disk_refused(path.parent):
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
