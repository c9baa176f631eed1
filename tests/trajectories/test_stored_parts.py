"""Parts on disk are read back as they were, and damage is noticed."""

from pathlib import Path

import pytest
import torch

from nld_train.errors import UserError
from nld_train.trajectories.embedding_pca import fit_embedding_pca
from nld_train.trajectories.stored_parts import (
    PlacedTrajectory,
    count_groups,
    part_counts_path,
    part_path,
    read_part,
    read_pca,
    write_part,
    write_pca,
)
from nld_train.trajectories.trajectory import Trajectory


def way(committed: list[int], seed: int) -> Trajectory:
    """A trajectory with random contents, whose first place is predicted right at every step."""
    torch.manual_seed(seed)
    positions = sum(step + 1 for step in committed)
    found = Trajectory(
        torch.randint(50, 99, (len(committed),), dtype=torch.int32),
        torch.tensor(committed, dtype=torch.int16),
        torch.randint(0, 50, (positions, 3), dtype=torch.int32),
        torch.rand(positions, 12).half(),
    )
    masked = found.step_masks()
    first = torch.arange(len(committed)).expand(masked.shape)[masked] == 0
    found.top[first, 0] = found.final[0]
    return found


GROUPS = {
    "confidence.3": [
        PlacedTrajectory(4, 1, 0, way([2, 0, 1], 0)),
        PlacedTrajectory(4, 2, 0, way([0, 1, 2], 1)),
        PlacedTrajectory(9, 1, 1, way([1, 2, 0], 2)),
    ],
    "hybrid.3": [],
    "hybrid.4": [PlacedTrajectory(4, 1, 5, way([0, 0, 1, 0], 3))],
}


def test_a_part_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_part(tmp_path, 7, GROUPS, (2, 11))
    found = read_part(tmp_path, 7)
    assert list(found) == ["confidence.3", "hybrid.4"]
    for name, placed in found.items():
        for left, right in zip(placed, GROUPS[name], strict=True):
            assert (left.prompt, left.turn, left.block) == (right.prompt, right.turn, right.block)
            for field, value in vars(right.trajectory).items():
                got = vars(left.trajectory)[field]
                assert torch.equal(got, value) and got.dtype == value.dtype
    first = part_path(tmp_path, 7).read_bytes()
    write_part(tmp_path, 7, GROUPS, (2, 11))
    assert part_path(tmp_path, 7).read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-00007.json", "part-00007.safetensors"]


def test_counts() -> None:
    """Three ways of 3 + 2 + 1 places, the first place masked 3, 1 and 2 times; one of two steps."""
    counts = count_groups(GROUPS)
    assert counts["confidence.3"] == {"trajectories": 3, "steps": 9, "positions": 18, "right": 6}
    assert counts["hybrid.3"] == {"trajectories": 0, "steps": 0, "positions": 0, "right": 0}
    assert counts["hybrid.4"] == {"trajectories": 1, "steps": 2, "positions": 5, "right": 1}


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path, 0, GROUPS, (2, 11))
    content = bytearray(part_path(tmp_path, 0).read_bytes())
    content[-1] ^= 1
    part_path(tmp_path, 0).write_bytes(content)
    with pytest.raises(UserError, match="not as it was written"):
        read_part(tmp_path, 0)
    part_path(tmp_path, 0).unlink()
    with pytest.raises(UserError, match="no part-00000.safetensors"):
        read_part(tmp_path, 0)
    part_counts_path(tmp_path, 0).unlink()
    with pytest.raises(UserError, match="no part-00000.json"):
        read_part(tmp_path, 0)


def test_the_pca_is_read_as_it_was_written(tmp_path: Path) -> None:
    torch.manual_seed(1)
    pca = fit_embedding_pca(torch.randn(40, 9), 4)
    write_pca(tmp_path, pca)
    found = read_pca(tmp_path)
    assert found.scale == pca.scale and found.explained == pca.explained
    for name in ("mean", "basis", "coordinates"):
        assert torch.equal(vars(found)[name], vars(pca)[name])
    (tmp_path / "pca.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"pca.safetensors: .*do: remove it"):
        read_pca(tmp_path)
