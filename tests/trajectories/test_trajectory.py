"""The examples of a trajectory: what is judged, what is known, what is right."""

import pytest
import torch

from nld_train.hf.sampler_features_nemotron_labs_diffusion import CERTAIN
from nld_train.trajectories.trajectory import SEED, Trajectory

# A seed 7; then place 2 is committed, then 3, then 1: 3 + 2 + 1 masked places, in the order of step and place.
WAY = Trajectory(
    torch.tensor([7, 4, 2, 5], dtype=torch.int32),
    torch.tensor([SEED, 2, 0, 1], dtype=torch.int16),
    torch.tensor([[4, 1, 3], [2, 1, 3], [9, 1, 3], [8, 1, 3], [5, 1, 3], [4, 1, 3]], dtype=torch.int32),
    torch.arange(72).view(6, 12).half(),
)
COORDINATES = torch.randn(10, 3).half()


def test_steps_and_labels() -> None:
    examples = WAY.step_examples(COORDINATES, ())
    assert examples.masked.tolist() == [
        [False, True, True, True],
        [False, True, False, True],
        [False, True, False, False],
    ]
    assert examples.judged.equal(examples.masked)
    # The second step thinks 8 of place 1, and 4 will stand there; the first thinks 9 of place 3.
    assert examples.labels.tolist() == [
        [False, True, True, False],
        [False, False, False, True],
        [False, True, False, False],
    ]
    assert examples.features[1, 3, 9:].tolist() == WAY.statistics[4].tolist()
    assert examples.features[1, 2].tolist() == [*COORDINATES[2].tolist(), *[0.0] * 6, *CERTAIN]


@pytest.mark.parametrize(
    ("ends", "judged"),
    [((2,), [False, True, True, False]), ((5, 4), [False, True, False, False]), ((7,), [False, False, False, False])],
)
def test_what_stands_behind_the_end_of_the_text_is_not_judged(ends, judged) -> None:
    """The end itself is."""
    assert WAY.step_examples(COORDINATES, ends).judged[0].tolist() == judged
