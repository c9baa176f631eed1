import random

import numpy as np
import pytest
import torch

from nld_train.noise.seeding import keyed_uniforms


def test_numbers_are_the_same_on_every_machine_and_version():
    assert keyed_uniforms(1234, 0, "train", 4).tolist() == [
        0.7631124282565549,
        0.4884055582101293,
        0.5614520570395041,
        0.3874116394224396,
    ]
    assert keyed_uniforms(1234, 7, "train/token", 2).tolist() == [0.8878245947354378, 0.5591066455819268]


@pytest.mark.parametrize("other", [(1, 5, "train"), (2, 6, "train"), (2, 5, "validation")])
def test_seed_index_and_purpose_each_give_another_stream(other):
    mine, theirs = keyed_uniforms(2, 5, "train", 2000), keyed_uniforms(*other, 2000)
    assert not (mine == theirs).any()
    assert abs(torch.corrcoef(torch.stack([mine, theirs]))[0, 1]) < 5 / 2000**0.5


def test_a_longer_draw_begins_with_the_shorter_one():
    assert torch.equal(keyed_uniforms(3, 9, "train", 100)[:10], keyed_uniforms(3, 9, "train", 10))


def test_numbers_are_uniform_in_the_unit_interval():
    drawn = keyed_uniforms(0, 0, "train", 40_000)
    assert drawn.dtype == torch.float64 and drawn.min() >= 0 and drawn.max() < 1
    counts = torch.histc(drawn, 20, 0, 1)
    assert ((counts - 2000).square() / 2000).sum() < 50  # chi-squared, 19 degrees of freedom: p = 1e-4


def test_far_indices_cost_no_more_than_near_ones():
    assert keyed_uniforms(1, 2**63, "train", 3).shape == (3,)


def test_no_global_generator_is_read_or_moved():
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    before = keyed_uniforms(1, 1, "train", 5)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all() and states[2] == random.getstate()
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(before, keyed_uniforms(1, 1, "train", 5))


def test_negative_index_is_refused():
    with pytest.raises(AssertionError, match="negative"):
        keyed_uniforms(1, -1, "train", 1)
