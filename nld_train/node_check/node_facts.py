"""What a node must have before its ranks start, and what it lacks."""

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
SHARED_BYTES = 3e7  # less is left where ended jobs forgot their segments
CLOCK_SECONDS = 5.0  # further apart, the times of files and of logs cannot be compared


@dataclass(frozen=True)
class NodeRequirements:
    """Of every node of a run."""

    output: str  # folder of the run
    ranks: int  # on every node
    output_bytes: float  # free there
    gpus: int | None = None  # None: one for each rank if the first node has any
    temporary_bytes: float = TEMPORARY_BYTES
    shared_bytes: float = SHARED_BYTES
    clock_seconds: float = CLOCK_SECONDS  # from the first node's clock


@dataclass(frozen=True)
class NodeFacts:
    """Of one node, as it tells them itself."""

    gpus: int
    refused: str  # why the run is refused at the door here; "" where it is not
    lacks: Sequence[str]  # what was found, and what is expected


def read_node_facts(wanted: NodeRequirements, refused: str = "") -> NodeFacts:
    """Of this node."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return NodeFacts(gpus, refused, missing_room(wanted))


def missing_room(wanted: NodeRequirements) -> list[str]:
    """Folders that are full, or not to be written in."""
    output = nearest_existing_folder(Path(wanted.output).absolute())
    needs = [(output, wanted.output_bytes), (Path(tempfile.gettempdir()), wanted.temporary_bytes)]
    needs += [(SHARED, wanted.shared_bytes)] if SHARED.is_dir() else []
    free = [(folder, shutil.disk_usage(folder).free, need) for folder, need in needs]
    found = [
        f"{gb_text(there)} free in {folder}, expected {gb_text(need)}" for folder, there, need in free if there < need
    ]
    return found if os.access(output, os.W_OK) else [f"{output} cannot be written", *found]


def node_problems(facts: NodeFacts, wanted: NodeRequirements, gpus: int, skew: float) -> list[str]:
    """What keeps a node out of the run. gpus: that every node must have; skew: seconds its clock is ahead."""
    found = [f"refused there: {facts.refused}"] if facts.refused else []
    if facts.gpus < gpus:
        found.append(f"{counted_noun(facts.gpus, 'GPU')}, expected {gpus}")
    found += facts.lacks
    if abs(skew) > wanted.clock_seconds:
        found.append(f"its clock is {skew:+.1f} s off the first node's, expected at most {wanted.clock_seconds:g} s")
    return found
