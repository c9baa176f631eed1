"""The size that is said before, against files and by hand."""

import torch

from nld_train.model_sizes import NLD_8B
from nld_train.sampler.collection_size import collecting_memory, plain_bytes, sized_trajectories, trajectory_bytes
from nld_train.trajectories.stored_parts import PlacedTrajectory, pack_groups
from nld_train.trajectories.trajectory import Trajectory


def test_bytes_are_those_of_the_tensors() -> None:
    """Of a way that commits one token a step."""
    for length in (2, 8, 32):
        positions = sum(range(length))
        way = Trajectory(
            torch.zeros(length, dtype=torch.int32),
            torch.arange(-1, length - 1, dtype=torch.int16),
            torch.zeros(positions, 3, dtype=torch.int32),
            torch.zeros(positions, 12).half(),
        )
        tensors = pack_groups({"confidence.8": [PlacedTrajectory(0, 1, 0, way)] * 5}).values()
        assert sum(tensor.nbytes for tensor in tensors) == 5 * trajectory_bytes(length)


def test_twenty_million_trajectories() -> None:
    """Half of block 8: 28 places of 36 bytes, 8 of 6 and 12; half of block 32: 496 of 36, 32 of 6 and 12."""
    size = sized_trajectories([(8, 10_000_000), (32, 10_000_000)])
    assert size.steps == 380_000_000 and size.positions == 5_240_000_000
    assert size.bytes == 10_000_000 * (28 * 36 + 8 * 6 + 12 + 496 * 36 + 32 * 6 + 12) == 191_280_000_000
    assert 10_000_000 * (plain_bytes(8) + plain_bytes(32)) == 10_000_000 * (7 * 8 + 31 * 32) * 289


def test_memory_of_the_8b() -> None:
    memory = collecting_memory(NLD_8B, 1024, 128)
    assert 16.5e9 < memory["weights"] < 17.5e9
    assert memory["cache"] == 16 * (1024 + 128 + 256) * 34 * 2 * 8 * 128 * 2
    assert memory["logits"] == 131_072 * (4096 * 2 + 6 * 256 * 4)
