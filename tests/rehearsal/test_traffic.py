"""What Megatron's collectives send in a step of a rank, counted call by call, against the formulas of the plan."""

from collections.abc import Sequence

import pytest

from nld_train.config import RunConfig
from nld_train.objectives.choose import objective_of
from nld_train.plan.network import stage_traffic
from nld_train.recipe import load_recipe
from nld_train.rehearsal.fake_ranks import RankQuestion, ask_ranks

WITHIN = 0.0005  # of the plan, which leaves out a number for each LM-head row and the norms' gradients


def short_run(name: str, *overrides: str) -> RunConfig:
    """A recipe for GPUs at its full width, with four layers and two micro-batches a step on each of 16 GPUs."""
    return load_recipe(name, ["model.layers=4", "parallel.world_size=16", *overrides])


CASES = {
    "tensor 2 with sequence, data 8": (short_run("nld_8b_stage2_joint", "train.global_batch=16"), 0),
    "without sequence": (short_run("nld_8b_stage2_joint", "train.global_batch=16", "parallel.sequence=false"), 0),
    "all-reduce of gradients": (
        short_run("nld_8b_stage2_joint", "train.global_batch=16", "parallel.distributed_optimizer=false"),
        0,
    ),
    "full recomputation": (short_run("nld_8b_stage2_joint", "train.global_batch=16", "parallel.recompute=full"), 0),
    "context 2, attention recomputed": (
        short_run("nld_8b_stage2_joint", "train.global_batch=8", "parallel.context=2", "parallel.recompute=selective"),
        0,
    ),
    "context 2, packed": (short_run("nld_8b_sft", "train.global_batch=4", "parallel.context=2"), 0),
    "first stage of 2": (short_run("nld_8b_stage2_joint", "train.global_batch=8", "parallel.pipeline=2"), 0),
    "last stage of 2": (short_run("nld_8b_stage2_joint", "train.global_batch=8", "parallel.pipeline=2"), 8),
    "first stage of 2, two chunks": (
        short_run("nld_8b_stage2_joint", "train.global_batch=8", "parallel.pipeline=2", "parallel.virtual_pipeline=2"),
        0,
    ),
}


USUAL = ("tensor 2 with sequence, data 8", "context 2, packed", "first stage of 2, two chunks")


@pytest.mark.long
@pytest.mark.megatron
def test_a_rank_sends_what_the_plan_says() -> None:
    compare_cases(USUAL)


@pytest.mark.long
@pytest.mark.megatron
def test_a_rank_of_any_other_layout_sends_what_the_plan_says() -> None:
    compare_cases([case for case in CASES if case not in USUAL])


def compare_cases(cases: Sequence[str]) -> None:
    """Ask the ranks of these cases, one after another in one process, and compare each with its plan."""
    answers = ask_ranks([RankQuestion(*CASES[case], "traffic") for case in cases])
    far = {case: pair for case, found in zip(cases, answers, strict=True) if (pair := disagreement(case, found))}
    assert not far, far


def disagreement(case: str, found: dict[str, float]) -> tuple[dict[str, float], dict[str, float]] | None:
    """What was counted and what is planned, in bytes, where they are apart."""
    run, rank = CASES[case]
    stage = rank // (run.parallel.world_size // run.parallel.pipeline)
    # The fake step masks every token.
    rows = run.train.micro_batch * objective_of(run).most_head_rows() / run.parallel.context
    planned = {each.purpose: each.sent for each in stage_traffic(run, stage, rows)}
    others = sum(size for purpose, size in found.items() if purpose not in planned)
    main = {purpose: found.get(purpose, 0.0) for purpose in planned}
    agrees = main == pytest.approx(planned, rel=WITHIN) and others < WITHIN * sum(planned.values())
    return None if agrees else (found, planned)
