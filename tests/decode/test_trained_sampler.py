"""Decoding with a trained sampler: what it is told, what it decides, and that rows do not see each other."""

from dataclasses import replace

import pytest
import torch

from nld_train.decode.ar import generate_ar
from nld_train.decode.diffusion import generate_diffusion
from nld_train.decode.infill import TextGap, infill_gaps
from nld_train.decode.self_speculation import generate_self_speculation
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from nld_train.evaluation.oracle_forwards import OracleBlock
from nld_train.evaluation.oracle_walks import MASKED
from nld_train.hf.cache_nemotron_labs_diffusion import KVCache
from nld_train.hf.decoding_nemotron_labs_diffusion import evaluation_mode, extend_cache, noisy_logits
from nld_train.hf.trained_sampler_nemotron_labs_diffusion import TrainedSampler
from nld_train.sampler.trajectory_walks import SeenForwards, TextLimits, confidence_trajectories
from nld_train.trajectories.trajectory import SEED, Trajectory
from tests.decode.conftest import MASK
from tests.decode.random_sampler import constant_parts, judged_row, put_sampler, random_parts
from tests.decode.test_revision import CASES

VOCABULARY, BLOCK, NEW = 6, 8, 24
SETTINGS = DecodeConfig(max_new_tokens=NEW, block_length=BLOCK, threshold=0.6, sampler=True, eos_token_id=())


@pytest.fixture
def sampled(make_model, tmp_path):
    """Makes a model as it is read from a folder with this sampler."""

    def make(network, coordinates):
        put_sampler(tmp_path, network, coordinates)
        model = make_model(len(coordinates))
        model.name_or_path = str(tmp_path)
        return model

    return make


@pytest.fixture
def prompts(ragged) -> list[list[int]]:
    return [[token if token != MASK else 2 for token in prompt] for prompt in ragged[:8]]


def heard(sampler: TrainedSampler) -> list[tuple[torch.Tensor, ...]]:
    """What the network will be given: (features, masked, present) of every call."""
    seen: list[tuple[torch.Tensor, ...]] = []
    sampler.network.register_forward_pre_hook(lambda network, given: seen.append(given))
    return seen


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_a_sampler_chooses_places_as_defined_in_a_batch_and_alone(sampled, prompts, changes) -> None:
    model = sampled(*random_parts(VOCABULARY))
    settings = replace(SETTINGS, **{"revise": 2} | changes)
    together = generate_diffusion(model, prompts, settings)
    plain = generate_diffusion(model, prompts, replace(settings, sampler=False))
    for prompt, result in zip(prompts, together, strict=True):
        row = judged_row(model, prompt, settings, model.trained_sampler()).run()
        assert (result.ids, result.order, result.nfe.total) == (row.tokens, row.order, row.forwards)
        assert replace(generate_diffusion(model, [prompt], settings)[0], seconds=0) == replace(result, seconds=0)
    assert [one.order for one in together] != [one.order for one in plain], "the sampler decides nothing"


@pytest.mark.parametrize("revise", [0, 2])
def test_a_gap_is_judged_as_if_it_had_no_padding(sampled, prompts, revise) -> None:
    model = sampled(*random_parts(VOCABULARY))
    gaps = [TextGap(prompt[:3], prompt[3 : 4 + number]) for number, prompt in enumerate(prompts) if len(prompt) > 3]
    settings = replace(SETTINGS, revise=revise)
    together = infill_gaps(model, gaps, 5, settings)
    assert len({len(gap.seen(5, BLOCK)) for gap in gaps}) > 1, "some gaps are padded"
    for gap, result in zip(gaps, together, strict=True):
        row = judged_row(model, list(gap.before), settings, model.trained_sampler())
        row.run_gap(gap.seen(5, BLOCK), 5)
        assert (result.ids, result.order, result.nfe.total) == (row.tokens, row.order, row.forwards)


def test_always_sure_commits_all_at_once_and_never_sure_one_a_step(sampled, prompts, tmp_path) -> None:
    model = sampled(*constant_parts(VOCABULARY, 9.0))
    for result in generate_diffusion(model, prompts, SETTINGS):
        assert result.nfe.draft_or_denoise == NEW // BLOCK
    with torch.no_grad():
        model.trained_sampler().network.head.bias.fill_(-9.0)
    for result in generate_diffusion(model, prompts, SETTINGS):
        assert result.nfe.draft_or_denoise == NEW - NEW // BLOCK
        steps = [result.order[start + 1 : start + BLOCK] for start in range(0, NEW, BLOCK)]
        assert all(step == sorted(step) for step in steps), "of equals the leftmost comes first"


def test_twice_is_the_same_and_other_modes_are_not_changed(sampled, prompts) -> None:
    model = sampled(*random_parts(VOCABULARY))
    first, second = (generate_diffusion(model, prompts, SETTINGS) for _ in range(2))
    assert [replace(one, seconds=0) for one in first] == [replace(one, seconds=0) for one in second]
    for mode in (generate_ar, generate_self_speculation):
        found, plain = (mode(model, prompts[:3], replace(SETTINGS, sampler=with_it)) for with_it in (True, False))
        assert [replace(one, seconds=0) for one in found] == [replace(one, seconds=0) for one in plain]


def test_a_temperature_and_a_model_without_a_sampler_are_refused_in_one_line(small, sampled, prompts) -> None:
    with pytest.raises(UserError, match="sampler=true with temperature=0.5; allowed: temperature=0"):
        replace(SETTINGS, temperature=0.5)
    with pytest.raises(UserError, match="read from no folder; allowed: a model of `from_pretrained`"):
        generate_diffusion(small, prompts, SETTINGS)


def test_the_network_is_told_what_a_collected_trajectory_tells(make_model, prompts) -> None:
    """Every step of collected blocks, given to the sampler of a decoder."""
    model, (network, coordinates) = make_model(30), random_parts(30)
    sampler = TrainedSampler(network.shape, network, coordinates)
    seen, steps = heard(sampler), 0
    with evaluation_mode(model):
        found = confidence_trajectories(SeenForwards(model, prompts), BLOCK, TextLimits(NEW, ()), lambda count: None)
        for prompt, blocks in zip(prompts, found, strict=True):
            cache = KVCache(1)
            extend_cache(model, torch.tensor([prompt]), cache)
            for trajectory in blocks:
                examples = trajectory.step_examples(coordinates, ())
                for step, masked in enumerate(examples.masked):
                    ids = trajectory.final.long().masked_fill(masked, MASK)[None]
                    sampler.judge_block(noisy_logits(model, ids, cache, MASK), ids, masked[None])
                    features, flags, _ = seen.pop()
                    assert torch.equal(features[0], examples.features[step]) and torch.equal(flags[0], masked)
                    steps += 1
                extend_cache(model, trajectory.final.long()[None], cache)
    assert steps == len(prompts) * NEW // BLOCK * (BLOCK - 1)


def test_while_decoding_the_network_is_told_what_the_block_s_trajectory_tells(sampled, prompts) -> None:
    """A block as it was decoded becomes a trajectory of the collector's own forwards, and that becomes examples."""
    model = sampled(*random_parts(30))
    seen = heard(model.trained_sampler())
    for prompt in prompts:
        settings = replace(SETTINGS, max_new_tokens=BLOCK, forwards_per_block=5)  # several places in some steps
        result = generate_diffusion(model, [prompt], settings)[0]
        committed = [SEED] + [order - 2 for order in result.order[1:]]  # the prefill is forward 1
        with evaluation_mode(model):
            forwards, block = SeenForwards(model, [prompt]), OracleBlock(0, len(prompt))
            top, statistics = [], []
            for step in range(max(committed) + 1):
                waiting = torch.tensor(committed) >= step
                state = tuple(
                    MASKED if masked else token for token, masked in zip(result.ids, waiting.tolist(), strict=True)
                )
                (said,) = forwards.predict_states([(block, state)])
                top.append(said.seen.top[waiting])
                statistics.append(said.seen.statistics[waiting])
        final, places = torch.tensor(result.ids, dtype=torch.int32), torch.tensor(committed, dtype=torch.int16)
        trajectory = Trajectory(final, places, torch.cat(top), torch.cat(statistics))
        examples = trajectory.step_examples(model.trained_sampler().coordinates, ())
        assert len(seen) == len(examples.masked) <= 5
        assert torch.equal(torch.cat([features for features, _, _ in seen]), examples.features)
        assert torch.equal(torch.cat([masked for _, masked, _ in seen]), examples.masked)
        seen.clear()
