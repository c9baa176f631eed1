"""FP8 as a setting: where it is refused, before anything starts."""

import pytest

from nld_train.config import RunConfig
from nld_train.errors import UserError
from nld_train.fp8_recipes import NEEDS, check_fp8_device
from nld_train.recipe import load_recipe

RUN = "nld_8b_stage2_joint"


def load(*settings: str, name: str = RUN) -> RunConfig:
    return load_recipe(name, settings)


@pytest.mark.parametrize("recipe", NEEDS)
@pytest.mark.parametrize("name", ["nld_3b_stage1_ar", RUN, "nld_14b_sft"])
def test_the_recipes_sizes_are_taken(name: str, recipe: str) -> None:
    assert load(f"train.fp8={recipe}", name=name).train.fp8 == recipe


@pytest.mark.parametrize(
    ("settings", "name", "said"),
    [
        (["train.precision=fp32"], RUN, "train.fp8=blockwise with train.precision=fp32"),
        ([], "nld_8b_drafter", "train.fp8=blockwise with a drafter"),
        (["model.hidden=4032"], RUN, "model.hidden = 4032 with train.fp8=blockwise; allowed: multiples of 128"),
        (["model.ffn=14400"], RUN, "model.ffn / parallel.tensor = 7200"),
        (["data.sequence_length=96"], RUN, "positions of a rank's micro-batch = 96"),
    ],
)
def test_what_fp8_cannot_do_is_refused(settings: list[str], name: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        load(*settings, "train.fp8=blockwise", name=name)
    assert said in str(refused.value)


def test_delayed_scaling_is_not_offered() -> None:
    with pytest.raises(UserError, match="none, tensorwise, blockwise, mxfp8"):
        load("train.fp8=delayed")


@pytest.mark.parametrize(
    ("recipe", "capability", "taken"),
    [
        ("none", None, True),
        ("tensorwise", None, False),
        ("tensorwise", (8, 0), False),
        ("tensorwise", (8, 9), True),
        ("blockwise", (8, 9), False),
        ("blockwise", (9, 0), True),
        ("mxfp8", (9, 0), False),
        ("mxfp8", (10, 0), True),
        ("mxfp8", (10, 3), True),
        ("mxfp8", (12, 0), False),  # Transformer Engine 2.20.2 has it for no consumer Blackwell
    ],
)
def test_a_machine_that_cannot_compute_it_is_refused(recipe: str, capability: tuple | None, taken: bool) -> None:
    if taken:
        check_fp8_device(recipe, capability)
        return
    with pytest.raises(UserError, match=f"train.fp8={recipe} on a .*compute capability"):
        check_fp8_device(recipe, capability)
