"""The arithmetic of the figures, by hand."""

import pytest

from nld_train.evaluation.oracle_figures import fewest_steps, oracle_figures, oracle_table

IDENTITY = {"kind": "sol", "model": "demo/hf", "depth": 1, "blocks": [4], "thresholds": [0.5]}


def block(greedy, sampler, compaction, **changes):
    whole = {"greedy": greedy, "samplers": [sampler], "compaction": compaction, "states": 6, "stopped": False}
    return whole | changes


def record(context, category, blocks, linear, ended=False):
    own = {"key": f"{context} block 4", "context": context, "category": category, "block": 4}
    return own | {"ended": ended, "blocks": blocks, "linear": linear}


RECORDS = [
    record("2/1", "b", [block([1, 0], [3, 1], 3)], [1, 2], ended=True),
    record("1/1", "a", [block([2, 1], [1, 0], 2), block([3, 1], [2, 1], 4, states=8, stopped=True)], [3, 2, 3]),
]


def test_figures_are_sums_over_blocks_and_cycles() -> None:
    (found,) = oracle_figures(IDENTITY, RECORDS)["blocks"]
    whole = found["overall"]
    assert (found["contexts"], found["ended"], whole["block_count"]) == (2, ["2/1"], 3)
    assert whole["greedy"] == {"acceptance": 12 / 6, "tokens_per_forward": 12 / 9, "ends_in_target": 2 / 3}
    assert whole["compaction"]["acceptance"] == 12 / 9 and whole["compaction"]["ends_in_target"] == 1
    assert whole["compaction"]["states_per_block"] == 20 / 3 and whole["compaction"]["stopped_by_budget"] == 1
    assert whole["samplers"]["0.5"] == {"acceptance": 2.0, "tokens_per_forward": 12 / 9, "ends_in_target": 2 / 3}
    assert whole["speed_of_light"]["acceptance"] == 12 / (3 + 2 + 2), "greedy, compaction and the sampler once each"
    assert whole["linear"] == {"accepted": 11 / 5, "tokens_per_forward": 1.1}
    assert whole["gap_percent"] == pytest.approx(100 * (1.2 / 1.1 - 1))
    assert found["categories"]["b"]["speed_of_light"]["acceptance"] == 4 / 3
    assert oracle_figures(IDENTITY, RECORDS[::-1]) == oracle_figures(IDENTITY, RECORDS), "the order says nothing"


def test_only_ways_that_end_in_the_target_bound_it() -> None:
    assert fewest_steps(block([1, 0], [2, 0], 3), 4) == 3
    assert fewest_steps(block([1, 0], [2, 1], 3), 4) == 2
    assert fewest_steps({"greedy": [1, 0], "samplers": []}, 4) == 4, "serial denoising always does"


def test_without_compaction_and_without_blocks_figures_are_left_open() -> None:
    bare = {"greedy": [2, 1], "samplers": [[2, 1]]}
    figures = oracle_figures(IDENTITY | {"depth": 0}, [record("1/1", "a", [bare], [])])
    assert (
        "compaction" not in figures["blocks"][0]["overall"] and figures["blocks"][0]["overall"]["gap_percent"] is None
    )
    empty = oracle_figures(IDENTITY, [record("1/1", "a", [], [2], ended=True)])
    assert empty["blocks"][0]["overall"]["speed_of_light"]["acceptance"] is None
    for given in (figures, empty):
        assert " - " in oracle_table(given)


def test_the_table_has_a_line_per_category_and_names_what_was_cut() -> None:
    lines = oracle_table(oracle_figures(IDENTITY, RECORDS)).splitlines()
    (whole,) = [line for line in lines if line.split()[1:3] == ["all", "categories"]]
    assert whole.split() == ["4", "all", "categories", "3", "2.00", "1.33", "1.71", "1.20", "2.20", "1.10", "+9.1", "%"]
    assert [line.split()[1] for line in lines if line.startswith("    4  ")][:2] == ["a", "b"]
    assert "0.5 2.00 (67 %)" in lines[-2] and lines[-1].startswith("block 4: the text of 1 of 2 contexts ends")
