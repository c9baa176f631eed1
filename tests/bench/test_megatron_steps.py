"""The steps that `nld bench step` measures are training steps. (Megatron-Bridge's own joint step needs a GPU.)"""

import gc
from pathlib import Path

import pytest
import torch

from nld_train.bench.measure import Effort
from nld_train.bench.outcome import outcome_markdown
from nld_train.bench.step_bench import AR, BRIDGE_AR, BRIDGE_JOINT, JOINT, bench_steps, with_ar_objective, with_one_rank
from tests.distributed.ranks import on, small_run

CPU = torch.device("cpu")
pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_rank")]


@pytest.fixture
def one_micro_batch():
    from megatron.core import num_microbatches_calculator as calculator

    calculator.init_num_microbatches_calculator(0, None, 1, 1, 1)
    yield
    calculator.unset_num_microbatches_calculator()


def test_both_stages_and_megatron_bridges_gpt_are_measured(one_micro_batch) -> None:
    from nld_train.bench.megatron_steps import megatron_alternatives

    run = with_one_rank(small_run("test", Path("nowhere"), alpha=0.3, init=None, parallel=on(1)))
    found = bench_steps(run, "Megatron's", megatron_alternatives(run, CPU), Effort(2, 1, budget=100), CPU)
    results = found.figures["results"]
    assert list(results) == [JOINT, BRIDGE_JOINT, AR, BRIDGE_AR]
    assert all(len(results[name]["seconds"]) == 2 for name in (JOINT, AR, BRIDGE_AR)), outcome_markdown(found)
    assert results[JOINT]["useful"] > results[AR]["useful"] == results[BRIDGE_AR]["useful"]
    assert f"{BRIDGE_JOINT} did not run: its flex_attention has no backward on the CPU" in outcome_markdown(found)


def test_a_step_that_is_dropped_leaves_no_model_behind(one_micro_batch) -> None:
    """On a GPU the next alternative needs its memory."""
    from megatron.core.models.gpt import GPTModel

    from nld_train.bench import megatron_steps

    def models() -> int:
        gc.collect()
        return sum(isinstance(one, GPTModel) for one in gc.get_objects())

    run = with_ar_objective(with_one_rank(small_run("test", Path("nowhere"), alpha=0.3, init=None, parallel=on(1))))
    before = models()
    for make in (megatron_steps.our_megatron_step, megatron_steps.bridge_ar_step):
        step = make(run, CPU)
        step()
        assert models() == before + 1
        del step
        assert models() == before


def test_megatron_bridges_batches_are_our_rows() -> None:
    from nld_train.bench.megatron_steps import bridge_batches
    from nld_train.bench.step_bench import endless_batches

    run = with_ar_objective(with_one_rank(small_run("test", Path("nowhere"), alpha=0.3, init=None, parallel=on(1))))
    ours, theirs = next(endless_batches(run, CPU)), next(bridge_batches(run, CPU))
    assert torch.equal(ours.input_ids, theirs["tokens"])
    assert torch.equal(ours.ar_targets, theirs["labels"].flatten())
