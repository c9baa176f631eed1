"""The arms of a study differ in what the study is about, and in nothing else."""

from pathlib import Path

import pytest

from nld_train.fields import changed_settings, leaf_values
from nld_train.study.catalog import STUDIES
from nld_train.study.contract import Study
from nld_train.study.miniature import Miniature

MINIATURE = Miniature(Path("out/study"), 200)
WHERE = {"name", "output", "init"}
# What an arm may set otherwise than the first arm of its study, in any of its runs of the same place.
CHOICES = {
    "averaging": {"diffusion.average"},
    "noise-sharing": {"diffusion.level_rows"},
    "ar-loss": {"diffusion.ar_weight"},
    "alpha": {"diffusion.alpha"},
    "block-size": {"diffusion.block_size"},
    "noise-law": {"diffusion.noise_law"},
    "noise-variance": {"diffusion.noise_law", "train.global_batch", "train.iterations", "train.eval_interval"},
    "drafter": set(),
    "drafter-loss": {"drafter.loss", "drafter.place_decay", "drafter.first_error_weight"},
}


@pytest.mark.parametrize("study", [STUDIES[name] for name in CHOICES], ids=list(CHOICES))
def test_arms_differ_in_the_choice_alone(study: Study):
    first, *others = (arm.runs(MINIATURE, 1) for arm in study.arms)
    changed = set()
    for chain in others:
        for one, other in zip(first, chain, strict=True):
            own = leaf_values(other)
            changed |= {name for name, value in leaf_values(one).items() if own[name] != value} - WHERE
    assert changed <= CHOICES[study.name] | ({"checkpoint.interval"} if study.name == "noise-variance" else set())
    assert changed or study.name == "drafter"


def test_stages_are_compared_at_equal_tokens_and_judged_alike():
    (first, second, judge), (only, other_judge) = (arm.runs(MINIATURE, 1) for arm in STUDIES["stages"].arms)
    assert first.train.iterations + second.train.iterations == only.train.iterations
    assert second.data.skip_rows == first.train.iterations * first.train.global_batch
    assert only.diffusion == second.diffusion and only.optimizer == second.optimizer
    same = leaf_values(other_judge)
    assert {name for name, value in leaf_values(judge).items() if same[name] != value} <= WHERE


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_seeds_change_weights_rows_and_noise_and_the_judge_stays(study: Study):
    for arm in study.arms:
        one, other = (arm.runs(MINIATURE, seed) for seed in (1, 2))
        for mine, theirs in zip(one[:-1], other[:-1], strict=True):
            own = leaf_values(theirs)
            changed = {name for name, value in leaf_values(mine).items() if own[name] != value} - WHERE
            assert changed == {"train.seed", "data.shuffle_seed", "diffusion.noise_seed"}
        if "judge" in one[-1].name:
            own = leaf_values(other[-1])
            assert {name for name, value in leaf_values(one[-1]).items() if own[name] != value} <= WHERE


def test_a_run_starts_from_the_one_before_it():
    for study in STUDIES.values():
        for arm in study.arms:
            chain = arm.runs(MINIATURE, 3)
            assert [run.init for run in chain] == [None, *(run.output for run in chain[:-1])]


def test_folders_are_named_by_the_settings_that_are_not_at_their_defaults():
    run = STUDIES["alpha"].arms[0].runs(MINIATURE, 1)[1]
    stated, every = changed_settings(run), leaf_values(run)
    assert stated.items() <= every.items()
    assert {"diffusion.alpha", "train.seed", "model.hidden", "data.blend", "init"} <= stated.keys()
    assert not {"diffusion.level_rows", "data.verify", "log.spike", "checkpoint.asynchronous"} & stated.keys()


def test_shared_runs_are_one_folder_wherever_the_study_lies():
    joint = {
        study.arms[place].runs(MINIATURE, 1)[1].output
        for study, place in (
            (STUDIES["alpha"], 2),
            (STUDIES["block-size"], 2),
            (STUDIES["noise-law"], 0),
            (STUDIES["ar-loss"], 0),
        )
    }
    assert len(joint) == 1
    elsewhere = STUDIES["alpha"].arms[2].runs(Miniature(Path("/data/elsewhere"), 200), 1)[1]
    assert Path(elsewhere.output).name == Path(joint.pop()).name
    fewer = STUDIES["alpha"].arms[2].runs(Miniature(Path("out/study"), 100), 1)[1]
    assert Path(fewer.output).name != Path(elsewhere.output).name
