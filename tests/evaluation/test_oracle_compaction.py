"""Compaction is safe on every block, and how far it is from the best of all orders."""

import pytest
import torch

from nld_train.evaluation.oracle_compaction import CompactionSearch
from nld_train.evaluation.oracle_forwards import OracleBlock, StateForwards, run_walks
from nld_train.evaluation.oracle_walks import MASKED, masked_block, serial_walk
from tests.evaluation.oracle_reference import SlowBlock, without_masks

MODELS = 60


@pytest.fixture(scope="module")
def blocks(make_model, ragged):
    """(the slow block, its fewest steps, the forwards, the block, its serial path) of random models."""
    found = []
    for seed in range(MODELS):
        model, prompt, length = make_model(6, 1000 + seed), without_masks(ragged[seed]), 4 + seed % 3
        forwards, block, slow = (
            StateForwards(model, [prompt]),
            OracleBlock(0, len(prompt)),
            SlowBlock(model, prompt, length),
        )
        with torch.no_grad():
            (serial,) = run_walks([(block, serial_walk(length))], forwards.predict_states)
        found.append((slow, slow.fewest(torch.tensor(serial[-1])), forwards, block, serial))
    return found


def searched(block, forwards, serial, depth, budget=5000):
    """The search and its path, whose every step is checked: it commits predictions that are the target's."""
    search = CompactionSearch(serial, budget)
    with torch.no_grad():
        (path,) = run_walks([(block, search.walk_block(depth))], forwards.predict_states)
    before = masked_block(len(serial))
    for state in path:
        said = block.predictions[before]
        new = [place for place, token in enumerate(state) if token != before[place]]
        assert new and all(before[place] == MASKED for place in new)
        assert all(state[place] == said.tokens[place] == serial[-1][place] for place in new)
        before = state
    assert path[-1] == serial[-1]
    return search, path


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_compaction_is_safe_and_never_better_than_the_best_order(blocks, depth) -> None:
    equal = shorter_than_serial = 0
    for _, fewest, forwards, block, serial in blocks:
        _, path = searched(block, forwards, serial, depth)
        assert fewest <= len(path) <= len(serial)
        equal += len(path) == fewest
        shorter_than_serial += len(path) < len(serial)
    print(f"depth {depth}: {equal} of {len(blocks)} are the best of all orders")
    assert equal > 0.8 * len(blocks) and shorter_than_serial > 0.5 * len(blocks)


def test_a_spent_budget_only_ends_the_search(blocks) -> None:
    stopped = longer = 0
    for slow, fewest, forwards, block, serial in blocks:
        free, best = searched(block, forwards, serial, depth=1)
        for budget in (1, 2, 4):
            search, path = searched(OracleBlock(0, len(slow.text)), forwards, serial, 2, budget)
            assert search.spent <= budget and fewest <= len(path)
            stopped += search.stopped
        search, path = searched(block, forwards, serial, 1, free.spent or 1)
        assert path == best and not search.stopped, "a budget of just what it needs changes nothing"
        if free.spent > 1:
            search, path = searched(block, forwards, serial, 1, free.spent - 1)
            assert search.stopped
            longer += len(path) > len(best)
    assert stopped > 0 and longer > 0


def test_the_budget_counts_states_and_not_what_others_have_asked_for(blocks) -> None:
    """Whether another walk has asked for a state before must not change what the search finds."""
    for slow, _, forwards, block, serial in blocks[:20]:
        alone = OracleBlock(0, len(slow.text))
        first, path = searched(alone, forwards, serial, 1, budget=3)
        asked = len(alone.predictions)
        again, same = searched(block, forwards, serial, 1, budget=3)  # everything is predicted here already
        assert (first.spent, path) == (again.spent, same)
        assert first.spent == asked - len(set(serial[:-1]) & alone.predictions.keys()) - 1
