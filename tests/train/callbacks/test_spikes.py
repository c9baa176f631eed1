"""Which gradient norms stand out."""

from nld_train.train.callbacks.spikes import FEWEST, WINDOW, SpikeDetector


def judge(spikes: SpikeDetector, norm: float) -> float | None:
    """Of a step that is logged."""
    found = spikes.median_if_spike(norm)
    spikes.log(norm)
    return found


def test_a_norm_above_the_factor_is_a_spike() -> None:
    spikes = SpikeDetector(5.0)
    assert [judge(spikes, 2.0) for _ in range(FEWEST)] == [None] * FEWEST
    assert spikes.median_if_spike(9.9) is None
    assert spikes.median_if_spike(10.1) == 2.0


def test_the_first_steps_are_not_judged() -> None:
    spikes = SpikeDetector(5.0)
    assert [judge(spikes, norm) for norm in [1.0] * (FEWEST - 1) + [1000.0]] == [None] * FEWEST


def test_a_falling_norm_is_no_spike_and_a_lasting_rise_is_one_no_longer() -> None:
    spikes = SpikeDetector(5.0)
    for step in range(100):
        assert judge(spikes, 100.0 * 0.95**step) is None
    risen = [judge(spikes, 1000.0) is not None for _ in range(200)]
    assert risen[0] and not risen[-1]


def test_zero_judges_nothing() -> None:
    spikes = SpikeDetector(0.0)
    assert not any(judge(spikes, norm) for norm in [1.0] * 50 + [1e9])


def test_one_that_goes_on_from_the_log_judges_like_one_that_never_stopped() -> None:
    norms = [float(1 + step % 7) for step in range(3 * WINDOW)]
    undisturbed = SpikeDetector(1.5)
    expected = [judge(undisturbed, norm) for norm in norms]
    assert any(expected)
    for stop in (FEWEST - 5, WINDOW + 11):
        resumed = SpikeDetector(1.5, norms[:stop])
        assert [judge(resumed, norm) for norm in norms[stop:]] == expected[stop:]
