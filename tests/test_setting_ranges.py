"""Every numeric setting has a range, and what lies outside is refused before anything starts."""

import math
from dataclasses import replace

import pytest

from nld_train.config import DrafterConfig, RunConfig
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from nld_train.fields import leaf_types, optional_type, replace_leaves
from nld_train.objective_sections import SamplerConfig
from nld_train.recipe import load_recipe, replace_settings
from nld_train.setting_ranges import RANGES
from nld_train.vision_config import VisionConfig

TINY = "tiny_stage1_ar"
NUMBERS = [
    *(key for key, kind in leaf_types(RunConfig).items() if (optional_type(kind) or kind) in (int, float)),
    *(f"decode.{key}" for key, kind in leaf_types(DecodeConfig).items() if (optional_type(kind) or kind) is not bool),
]
# Of the settings that take it: 0 as a value of its own, and nothing below 0 but one mark.
TAKE_ZERO = {
    *("diffusion.alpha", "diffusion.mask_token_id", "diffusion.noise_seed", "data.workers", "data.shuffle_seed"),
    *(
        "train.eval_batches",
        "train.eval_decode",
        "train.seed",
        "optimizer.min_lr",
        "optimizer.warmup_iterations",
        "optimizer.weight_decay",
    ),
    *("optimizer.decay_iterations", "optimizer.beta1", "optimizer.beta2", "log.spike", "drafter.dropout"),
    *("sampler.dropout", "sampler.patience", *(f"vision.{name}_token_id" for name in ("image", "break", "end"))),
    *("drafter.sampled_share", "model.rope.mscale", "model.rope.mscale_all_dim", "model.rope.query_scale_beta"),
    *(
        "init_step",
        "data.skip_rows",
        "decode.temperature",
        "decode.seed",
        "decode.threshold",
        "decode.revise",
        "decode.draft_threshold",
        "decode.ensemble_weight",
    ),
    *("decode.eos_token_id", "decode.max_thinking_tokens", "decode.end_think_token_id"),
}
DERIVED = {"train.iterations", "optimizer.warmup_iterations", "optimizer.decay_iterations"}  # -1: from the tokens


def is_taken(key: str, value: float) -> bool:
    section, _, name = key.rpartition(".")
    if section == "decode":
        settings: object = DecodeConfig()
    else:
        run = load_recipe(TINY, ["diffusion.block_size=2"])
        sections = {"drafter": DrafterConfig(), "sampler": SamplerConfig(), "vision": VisionConfig()}
        settings = sections.get(section, run)
        name = name if section in sections else key
    try:
        if isinstance(settings, RunConfig) and key.startswith("model.rope."):
            replace(
                settings.model.rope, **{name.rpartition(".")[2]: value}
            )  # alone: what fits it is for the run to say
        elif not section:
            replace(run, init="x", **{name: value})
        elif isinstance(settings, RunConfig):
            replace_leaves(vars(settings)[section], {key.rpartition(".")[2]: value})
        else:
            replace_leaves(settings, {name: value})
    except UserError as error:
        assert key in str(error), f"{error} does not name {key}"
        return False
    return True


def test_every_numeric_setting_has_a_range_and_nothing_else_has() -> None:
    assert sorted(RANGES) == sorted(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_out_of_range_is_refused_where_the_setting_is_made(key) -> None:
    taken = {value for value in (-1, 0, 1e18) if is_taken(key, value)}
    assert taken == ({0} if key in TAKE_ZERO else set()) | ({-1} if key in DERIVED else set())
    assert not is_taken(key, math.nan) and not is_taken(key, math.inf) and not is_taken(key, -math.inf)


@pytest.mark.parametrize("key", NUMBERS)
def test_the_bounds_themselves_are_taken_or_not_as_the_range_says(key) -> None:
    known = RANGES[key]
    assert not (known.low_excluded and known.holds(known.low)) and not (known.high_excluded and known.holds(known.high))
    assert known.holds((known.low + known.high) / 2)


@pytest.mark.parametrize(
    "split", ["abc", "99,1", "1,1,1,1", "0,0,0", "0,1,0", "99,-1,0", "nan,1,0", "1e999,1,0", "1,,0"]
)
def test_a_split_that_is_none_is_refused(split) -> None:
    with pytest.raises(UserError, match=r"data\.split="):
        load_recipe(TINY, [f"data.split={split}"])


def test_a_split_of_shares_is_taken() -> None:
    assert load_recipe(TINY, ["data.split=0.9,0.1,0"]).data.split == "0.9,0.1,0"
    assert replace_settings(load_recipe(TINY), {"data.split": "1,0,0"}).data.split == "1,0,0"
