import random
from statistics import fmean, stdev

import pytest
from scipy.stats import ttest_rel

from nld_train.study.significance import OPPOSITE, SAME, UNSEEN, mean_and_error, paired_difference


def test_three_seeds_by_hand():
    """Differences 1, 2 and 3: mean 2, error 1 / sqrt(3); t(0.975, 2) = 4.3027 and t(0.8, 2) = 1.0607."""
    found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], higher_is_better=True)
    assert found.difference.mean == 2 and found.difference.error == pytest.approx(3**-0.5)
    assert found.verdict == UNSEEN, "2 is less than 4.3027 / sqrt(3) = 2.484"
    assert found.detectable == pytest.approx((4.3027 + 1.0607) * 3**-0.5, abs=1e-4)


def test_lower_is_better_turns_the_sign():
    lower = paired_difference([1.0, 1.1, 1.0], [2.0, 2.0, 2.1], higher_is_better=False)
    assert lower.verdict == SAME and lower.difference.mean == pytest.approx(1.0)
    assert paired_difference([1.0, 1.1, 1.0], [2.0, 2.0, 2.1], higher_is_better=True).verdict == OPPOSITE


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_a_direction_is_seen_where_the_paired_t_test_says_so(seeds):
    draw, seen = random.Random(seeds), 0
    for _ in range(200):
        better, worse = ([draw.gauss(shift, 1) for _ in range(seeds)] for shift in (1.0, 0.0))
        found = paired_difference(better, worse, higher_is_better=True)
        assert (found.verdict != UNSEEN) == (ttest_rel(better, worse).pvalue < 0.05)
        seen += found.verdict != UNSEEN
    assert 0 < seen < 200


def test_an_effect_of_the_detectable_size_is_seen_four_times_of_five():
    draw, seeds, seen = random.Random(7), 5, 0
    detectable = fmean(
        paired_difference([draw.gauss(0, 1) for _ in range(seeds)], [0.0] * seeds, True).detectable or 0.0
        for _ in range(2000)
    )
    for _ in range(2000):
        found = paired_difference([draw.gauss(detectable, 1) for _ in range(seeds)], [0.0] * seeds, True)
        seen += found.verdict == SAME
    assert 0.72 < seen / 2000 < 0.88


def test_one_seed_has_no_error_and_shows_nothing():
    found = paired_difference([1.0], [9.0], higher_is_better=True)
    assert (found.verdict, found.detectable, str(found.difference)) == (UNSEEN, None, "-8.0000")
    values = [0.5, 0.7, 0.9, 1.2]
    assert mean_and_error(values).error == pytest.approx(stdev(values) / 2)
