import re

from nld_train.plan.dry_run import dry_run_text
from nld_train.plan.memory import worst_stage
from nld_train.recipe import load_recipe


def test_the_report_has_every_number_the_plan_promises() -> None:
    text = dry_run_text(load_recipe("nld_8b_stage2_joint"))
    for words in (
        "8,489,553,920",
        "143,051 iterations x 512 rows x 4,096",
        "8,192 positions, [noisy | clean] in blocks of 32",
        "mask density 0.2510",
        "FLOPs per token",
        "256 ranks = data 128 x tensor 2",
        "4 micro-batch(es) of 1 row(s)",
        "starts from       out/nld_8b/stage1_ar",
        "days on 256 H100",
        "118.854 GB on disk",
        "fits an 80 GB GPU",
    ):
        assert words in text, words


def test_a_run_that_does_not_fit_is_called_so() -> None:
    run = load_recipe("nld_8b_stage2_joint", ["parallel.tensor=1", "parallel.sequence=false"])
    assert not worst_stage(run).fits
    assert "DOES NOT FIT" in dry_run_text(run)


def test_the_parts_of_the_table_add_up_to_its_total() -> None:
    lines = dry_run_text(load_recipe("nld_14b_stage1_ar")).splitlines()
    parts = {name: float(size) for name, size in re.findall(r"^  (\w+) +(\d+\.\d{3})  ", "\n".join(lines), re.M)}
    total = parts.pop("total")
    assert len(parts) == 5 and abs(sum(parts.values()) - total) < 0.005


def test_memory_is_that_of_the_stage_that_needs_most() -> None:
    text = dry_run_text(load_recipe("nld_14b_stage1_ar", ["parallel.pipeline=2"]))
    assert f"pipeline stage {worst_stage(load_recipe('nld_14b_stage1_ar', ['parallel.pipeline=2'])).stage}" in text
