"""What a node must have before its ranks start, and what it lacks of that."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nld_train.doctor.finding import counted_noun, gb_text
from nld_train.doctor.machine import SHARED, nearest_existing_folder

TEMPORARY_BYTES = 5e8  # for compiled kernels and the like
SHARED_BYTES = 3e7  # less is free where ended jobs left their segments behind
CLOCK_SECONDS = 5.0  # where clocks are further apart, the times of files and logs cannot be compared


@dataclass(frozen=True)
class NodeRequirements:
    """What every node of a run must have."""

    output: str  # output folder of the run
    ranks: int  # on every node
    output_bytes: float  # free in the output folder
    gpus: int | None = None  # None: one for each rank where the first node has any GPU
    temporary_bytes: float = TEMPORARY_BYTES  # free in the folder of temporary files
    shared_bytes: float = SHARED_BYTES  # free in /dev/shm
    clock_seconds: float = CLOCK_SECONDS  # largest distance from the first node's clock


@dataclass(frozen=True)
class NodeFacts:
    """What one node publishes about itself."""

    gpus: int
    refused: str  # why this node's start checks refuse the run; "" where they accept it
    lacks: Sequence[str]  # one text for each thing it lacks: what was found, and what is expected


def read_node_facts(wanted: NodeRequirements, refused: str = "") -> NodeFacts:
    """Read the facts of this node. refused: why its start checks refuse the run, or ""."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return NodeFacts(gpus, refused, disk_problems(wanted))


def disk_problems(wanted: NodeRequirements) -> list[str]:
    """Folders that have too little free space, or that cannot be written."""
    output = nearest_existing_folder(Path(wanted.output).absolute())
    needs = [(output, wanted.output_bytes), (Path(tempfile.gettempdir()), wanted.temporary_bytes)]
    needs += [(SHARED, wanted.shared_bytes)] if SHARED.is_dir() else []
    free = [(folder, shutil.disk_usage(folder).free, need) for folder, need in needs]
    found = [
        f"{gb_text(there)} free in {folder}, expected {gb_text(need)}" for folder, there, need in free if there < need
    ]
    return found if os.access(output, os.W_OK) else [f"{output} cannot be written", *found]


def node_problems(facts: NodeFacts, wanted: NodeRequirements, gpus: int, skew: float) -> list[str]:
    """What keeps a node out of the run.

    gpus: how many GPUs every node must have; skew: seconds that this node's clock is ahead of the first node's.
    """
    found = [f"refused there: {facts.refused}"] if facts.refused else []
    if facts.gpus < gpus:
        found.append(f"{counted_noun(facts.gpus, 'GPU')}, expected {gpus}")
    found += facts.lacks
    if abs(skew) > wanted.clock_seconds:
        found.append(f"its clock is {skew:+.1f} s off the first node's, expected at most {wanted.clock_seconds:g} s")
    return found
