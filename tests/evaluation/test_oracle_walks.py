"""Targets and ways to them equal their definitions, whatever is batched."""

import pytest
import torch

from nld_train.evaluation.oracle_blocks import OracleSettings, find_targets, find_ways
from nld_train.evaluation.oracle_figures import fewest_steps
from nld_train.evaluation.oracle_forwards import OracleBlock, StateForwards, run_walks
from nld_train.evaluation.oracle_walks import MASKED, Prediction, greedy_walk, masked_block, serial_walk, threshold_walk
from tests.evaluation.oracle_reference import SlowBlock, without_masks

THRESHOLDS = (0.3, 0.5, 0.7)
MODELS = 200


def nothing(units: int) -> None:
    """Progress that nobody watches."""


def settings_of(length: int, blocks: int = 1, **changes) -> OracleSettings:
    given = {"block_lengths": (length,), "thresholds": THRESHOLDS, "depth": 1, "budget": 5000}
    return OracleSettings(**given | {"max_new_tokens": length * blocks, "eos_token_ids": ()} | changes)


def test_all_ways_equal_their_definitions_on_random_models(make_model, ragged) -> None:
    ended = dict.fromkeys(["greedy", *THRESHOLDS], 0)
    for seed in range(MODELS):
        model, length, settings = make_model(6, seed), 4 + seed % 3, settings_of(4 + seed % 3)
        prompts = [without_masks(ragged[number]) for number in (seed, -1 - seed)]
        with torch.no_grad():
            forwards = StateForwards(model, prompts)
            found = find_targets(forwards, length, settings, nothing)
            ways = find_ways([blocks[0] for blocks in found], forwards, settings, nothing)
        for prompt, (block,) in zip(prompts, found, strict=True):
            slow = SlowBlock(model, prompt, length)
            target, recorded = slow.serial(), ways[block]
            assert block.serial[-1] == tuple(target.tolist()) and len(block.serial) == length
            real = {"greedy": slow.greedy(target)} | {each: slow.sampler(each) for each in THRESHOLDS}
            for (name, (steps, ids)), way in zip(
                real.items(), [recorded["greedy"], *recorded["samplers"]], strict=True
            ):
                ends = torch.equal(ids, target)
                assert way == [steps, ends], (seed, name)
                assert not ends or fewest_steps(recorded, length) <= steps, (seed, name)
                ended[name] += ends
            assert recorded["compaction"] == slow.compaction(target), seed
    assert all(0 < count < 2 * MODELS for count in ended.values()), f"each must end in the target at times: {ended}"


def test_blocks_follow_each_other_and_see_the_targets_before_them(make_model, ragged) -> None:
    """All blocks of a context share one past; each must see its own part of it."""
    model, prompts, length = make_model(6, 5), ragged[:5], 4
    settings = settings_of(length, blocks=4)
    with torch.no_grad():
        forwards = StateForwards(model, prompts)
        found = find_targets(forwards, length, settings, nothing)
        ways = find_ways([block for blocks in found for block in blocks], forwards, settings, nothing)
    for prompt, blocks in zip(prompts, found, strict=True):
        text = list(prompt)
        for block in blocks:
            slow = SlowBlock(model, text, length)
            target = slow.serial()
            steps, ids = slow.greedy(target)
            assert block.serial[-1] == tuple(target.tolist()) and block.block.past == len(text)
            assert ways[block]["greedy"] == [steps, torch.equal(ids, target)]
            text += target.tolist()
        assert len(blocks) == 4


def test_a_target_that_ends_the_text_ends_its_context_alone(make_model, ragged) -> None:
    model, prompts, length = make_model(6, 5), ragged[:8], 4
    with torch.no_grad():
        whole = find_targets(StateForwards(model, prompts), length, settings_of(length, 4), nothing)
        ends = (whole[0][2].serial[-1][1],)  # a token that stands in a later block of the first context
        work = []
        cut = find_targets(
            StateForwards(model, prompts), length, settings_of(length, 4, eos_token_ids=ends), work.append
        )
    for blocks, kept in zip(whole, cut, strict=True):
        targets = [block.serial[-1] for block in blocks]
        holding = [number for number, target in enumerate(targets) if ends[0] in target]
        assert [block.serial[-1] for block in kept] == targets[: min(holding, default=4)]
    assert any(len(kept) < 4 for kept in cut)
    whole_work = settings_of(length, 4).units(len(prompts)) - sum(len(kept) * length for kept in cut)
    assert sum(work) == whole_work, "what is left out counts as done, the ways to what is kept do not yet"


def run_alone(walk, says):
    """The path of a walk, with says(state) as the model."""
    (path,) = run_walks([(OracleBlock(0, 0), walk)], lambda asked: [says(state) for _, state in asked])
    return path


def test_equals_are_committed_from_the_left() -> None:
    even = Prediction([7, 8, 9], [0.5, 0.5, 0.5])
    assert run_alone(serial_walk(3), lambda state: even) == [(7, MASKED, MASKED), (7, 8, MASKED), (7, 8, 9)]
    strange = (0, 0, 0)
    assert run_alone(greedy_walk(masked_block(3), strange), lambda state: even)[0] == (7, MASKED, MASKED)


def test_a_threshold_is_reached_by_its_own_value_and_the_best_place_needs_none() -> None:
    unsure = Prediction([7, 8, 9], [0.2, 0.5, 0.4])
    assert run_alone(threshold_walk(3, 0.4), lambda state: unsure) == [(MASKED, 8, 9), (7, 8, 9)]
    assert len(run_alone(threshold_walk(3, 0.6), lambda state: unsure)) == 3


@pytest.mark.parametrize(("give_up", "steps"), [(False, 2), (True, 1)])
def test_greedy_commits_a_wrong_token_where_none_is_right(give_up, steps) -> None:
    """The first two are right; then the last place is wrong, and nothing else is left."""
    said = Prediction([7, 8, 9], [0.2, 0.3, 0.9])
    path = run_alone(greedy_walk(masked_block(3), (7, 8, 0), give_up), lambda state: said)
    assert path[0] == (7, 8, MASKED) and len(path) == steps


def test_a_state_is_predicted_once_for_all_walks_of_its_block() -> None:
    block, other, asked_for = OracleBlock(0, 0), OracleBlock(0, 0), []

    def predict(asked):
        asked_for.extend(asked)
        return [Prediction([7, 8], [0.9, 0.8]) for _ in asked]

    walks = [(block, serial_walk(2)), (block, threshold_walk(2, 0.95)), (other, serial_walk(2))]
    run_walks(walks, predict)
    assert len(asked_for) == 4 and len({(id(each), state) for each, state in asked_for}) == 4
