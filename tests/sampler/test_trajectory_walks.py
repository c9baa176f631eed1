"""Trajectories, features and labels against an independent slow transcription, in float64."""

import pytest
import torch

from nld_train.hf.decoding_nemotron_labs_diffusion import evaluation_mode
from nld_train.hf.sampler_features_nemotron_labs_diffusion import CERTAIN
from nld_train.sampler.trajectory_walks import SeenForwards, TextLimits, confidence_trajectories, hybrid_trajectories
from nld_train.trajectories.embedding_pca import fit_embedding_pca
from tests.evaluation.oracle_reference import without_masks
from tests.sampler.slow_sampler import SlowSteps, slow_way

VOCABULARY = 30


@pytest.fixture(params=[1, 2])
def model(make_model, request):
    return make_model(VOCABULARY, seed=request.param)


@pytest.fixture
def prompts(ragged) -> list[list[int]]:
    return [without_masks(prompt) for prompt in ragged[:5]]


def no_advance(count: int) -> None:
    """Nobody is told."""


def same_way(trajectory, slow: SlowSteps, coordinates) -> None:
    """Every number of a trajectory and of its examples is that of the slow one."""
    examples, components = trajectory.step_examples(coordinates, ()), coordinates.shape[1]
    assert trajectory.final.tolist() == slow.final and len(examples.masked) == len(slow.steps)
    for step, places in enumerate(slow.steps):
        for place, seen in enumerate(places):
            features = examples.features[step, place]
            assert bool(examples.masked[step, place]) == (seen is not None)
            if seen is None:
                own = coordinates[slow.final[place]].tolist()
                assert features.tolist() == [*own, *[0.0] * (2 * components), *CERTAIN]
                assert not examples.labels[step, place]
                continue
            top, statistics, right = seen
            assert features[: 3 * components].tolist() == [
                number for token in top for number in coordinates[token].tolist()
            ]
            assert features[3 * components :].tolist() == pytest.approx(statistics, rel=1e-3, abs=1e-6)
            assert bool(examples.labels[step, place]) == right


def test_confidence_is_the_slow_transcription(model, prompts) -> None:
    """5 contexts of 5 blocks each, behind what the blocks before ended in: 50 blocks with both models."""
    coordinates = fit_embedding_pca(model.get_input_embeddings().weight).coordinates
    with evaluation_mode(model):
        found = confidence_trajectories(SeenForwards(model, prompts), 4, TextLimits(20, ()), no_advance)
    assert [len(blocks) for blocks in found] == [5] * 5
    labels = set()
    for prompt, blocks in zip(prompts, found, strict=True):
        text = list(prompt)
        for trajectory in blocks:
            same_way(trajectory, slow_way(model, text, 4, None), coordinates)
            text += trajectory.final.tolist()
            assert trajectory.committed[0] == -1 and sorted(trajectory.committed.tolist()) == [-1, 0, 1, 2]
            labels |= set(trajectory.right_predictions().tolist())
    assert labels == {False, True}


def test_hybrid_is_the_slow_transcription(model, prompts) -> None:
    """The truth is what the other policy ends in, with some tokens changed, so that it is met in part; of one context
    it is no whole block, of one it is nothing."""
    coordinates = fit_embedding_pca(model.get_input_embeddings().weight).coordinates
    with evaluation_mode(model):
        ends = confidence_trajectories(SeenForwards(model, prompts), 4, TextLimits(28, ()), no_advance)
        truths = [[token for block in blocks for token in block.final.tolist()] for blocks in ends]
        truths = [[token if i % 5 else (token + 1) % VOCABULARY for i, token in enumerate(truth)] for truth in truths]
        truths[1], truths[2] = truths[1][:6], []
        found = hybrid_trajectories(SeenForwards(model, prompts), truths, 4, no_advance)
    assert [len(blocks) for blocks in found] == [7, 2, 0, 7, 7]
    first = set()
    for prompt, truth, blocks in zip(prompts, truths, found, strict=True):
        for number, trajectory in enumerate(blocks):
            start = 4 * number
            slow = slow_way(model, prompt + truth[:start], 4, truth[start : start + 4])
            same_way(trajectory, slow, coordinates)
            first.add(trajectory.committed.tolist().count(0))
    assert len(first) > 1, "the first step commits several places somewhere"


def test_a_context_ends_with_the_block_that_ends_its_text(model, prompts) -> None:
    told = []
    with evaluation_mode(model):
        whole = confidence_trajectories(SeenForwards(model, prompts), 4, TextLimits(20, ()), no_advance)
        end = int(whole[0][1].final[2])
        found = confidence_trajectories(SeenForwards(model, prompts), 4, TextLimits(20, (end,)), told.append)
    for blocks, ended in zip(whole, found, strict=True):
        holds = [end in trajectory.final.tolist() for trajectory in blocks]
        assert len(ended) == (holds.index(True) + 1 if any(holds) else 5)
        for left, right in zip(blocks, ended, strict=False):
            assert torch.equal(left.final, right.final) and torch.equal(left.committed, right.committed)
    assert sum(told) == 5 * 20
