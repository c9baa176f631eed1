"""docs/scale.md holds the numbers of today's arithmetic, in its tables and in its sentences."""

from pathlib import Path

import pytest

from nld_train.plan import network, scale
from nld_train.plan.flops import H100_BF16, MFU
from tests.plan.scale_page import PUBLISHED, RECIPES, all_tables, implied_mfu, planned

PAGE = (Path(__file__).parents[2] / "docs/scale.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())  # lines may break anywhere


@pytest.mark.parametrize("number", range(5))
def test_a_table_stands_on_the_page_as_it_is_computed(number: int) -> None:
    table = all_tables()[number]
    assert table in PAGE, f"print it by `.venv/bin/python -m tests.plan.scale_page`:\n{table}"


def test_the_page_has_no_other_table() -> None:
    assert PAGE.count("|---|") and PAGE.count("\n|") == sum(table.count("\n") + 1 for table in all_tables())


def test_the_assumptions_are_those_of_the_plan() -> None:
    for words in (
        f"{MFU:.0%}".replace("%", " %") + f" x {H100_BF16 / 1e12:.0f} TFLOP/s",
        f"{network.NVLINK / 1e9:g} GB/s a GPU inside a node of {network.NODE}",
        f"{network.NETWORK / 1e9:g} GB/s a GPU between nodes",
        f"{network.group_rate(64, 2) / 1e9:g} GB/s each under tensor 2",
        f"{network.group_rate(64, 4) / 1e9:g} GB/s under tensor 4",
        f"{scale.FILE_SYSTEM / 1e9:g} GB/s for all ranks together",
        f"{scale.GPU_HOURS_PER_FAILURE:,.0f} GPU hours",
        f"half a checkpoint interval and {scale.RESTART / 60:g} minutes",
        f"{scale.PRICE:g} dollars a GPU hour",
    ):
        assert words in WORDS, words


def test_the_sentences_say_what_the_tables_say() -> None:
    small, recipe, large = (planned("nld_8b_stage2_joint", gpus) for gpus in (8, 256, 1024))
    wide = planned("nld_14b_stage2_joint", 1024)
    busy = [sum(each.seconds for each in plan.traffic) / plan.step for _, plan in (large, wide)]
    middle = [planned(name, 32) for name in RECIPES]
    top = [scale.reachable_mfu(run, plan.exposed) for run, plan in middle]
    low = {each.name: implied_mfu(each) for each in PUBLISHED}
    alone = large[1].traffic[0].sent / network.NETWORK / (large[1].step * 2 / 3)
    for words in (
        f"{small[0].checkpoint.interval * small[1].step / 3600:.1f} hours on 8 GPUs",
        f"Every {recipe[1].best_interval:,.0f} steps",
        f"{large[0].checkpoint.interval * large[1].step / 60:.1f} minutes on 1,024",
        f"checkpoint.interval={large[1].best_interval:.0f}",
        f"for {busy[0]:.0%} of the step (8B) and {busy[1]:.0%} (14B)".replace("%", " %"),
        f"the {recipe[1].step:.3g} s at 256",
        f"would fill {alone:.0%} of the backward".replace("%", " %"),
        f"below an MFU of {top[1]:.0%}, 8B below {top[0]:.0%}".replace("%", " %"),
        f"would be {MFU / low['Llama 3.1 8B']:.1f} times as high, by the 70B's {MFU / low['Llama 3.1 70B']:.1f} times",
    ):
        assert words in WORDS, words
