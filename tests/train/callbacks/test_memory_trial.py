"""What the memory trial trains on, and what a run is told that it does not fit."""

from dataclasses import replace

import pytest
import torch

from nld_train.config import DrafterConfig, RunConfig
from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.objectives.choose import objective_of
from nld_train.recipe import load_recipe

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_rank")]


def run_with(**diffusion: object) -> RunConfig:
    run = load_recipe("tiny_stage2_joint", ["train.micro_batch=2"])
    return replace(run, diffusion=replace(run.diffusion, **diffusion))  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("mask", [0, 100])
def test_no_batch_has_more_rows_of_the_head(alpha: float, packed: bool, mask: int) -> None:
    """Every noisy token is masked, and every clean one has a target."""
    from nld_train.train.callbacks.memory_trial import largest_micro_batch

    run = run_with(alpha=alpha, document_mask=packed, mask_token_id=mask)
    objective = objective_of(run)
    batch = largest_micro_batch(run, objective, WHOLE)
    assert batch.head_positions.numel() == 2 * objective.most_head_rows()
    if alpha:
        assert (batch.input_ids[:, : run.data.sequence_length] == mask).all()
    parts = [largest_micro_batch(run, objective, ContextShard(2, rank)) for rank in range(2)]
    assert sum(part.head_positions.numel() for part in parts) == batch.head_positions.numel()


def test_a_drafter_drafts_all_its_blocks() -> None:
    from nld_train.train.callbacks.memory_trial import largest_micro_batch

    run = load_recipe("tiny_drafter", ["train.micro_batch=2"])
    assert isinstance(run.drafter, DrafterConfig)
    batch = largest_micro_batch(run, objective_of(run), WHOLE)
    assert batch.draft_positions.numel() == 2 * objective_of(run).most_head_rows()


def test_memory_that_failed_is_known_from_other_errors() -> None:
    from nld_train.train.callbacks.memory_trial import is_out_of_memory

    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60)
    assert is_out_of_memory(found.value) and is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as found:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(found.value)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "NCCL error in: ProcessGroupNCCL.cpp, unhandled cuda error. Last error: Cuda failure 2 'out of memory'",
    ],
)
def test_memory_that_failed_a_library_beside_torch_is_known_too(said: str) -> None:
    from nld_train.train.callbacks.memory_trial import is_out_of_memory

    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_the_advice_names_what_this_run_can_change() -> None:
    from nld_train.train.callbacks.memory_trial import not_enough_memory

    run = run_with()
    said = str(not_enough_memory(run, RuntimeError("CUDA out of memory. Tried 2 GiB.\nmore")))
    assert "train.micro_batch=2 rows of 256 tokens, all of them masked: CUDA out of memory. Tried 2 GiB.;" in said
    assert "train.micro_batch=1, parallel.recompute=selective, parallel.recompute=full, parallel.tensor=2" in said
    small = replace(run, train=replace(run.train, micro_batch=1), parallel=replace(run.parallel, recompute="full"))
    assert "do: try one of parallel.tensor=2, parallel.context=2, more ranks;" in str(
        not_enough_memory(small, MemoryError())
    )
    alone = replace(small, parallel=replace(small.parallel, world_size=1))
    assert "do: try one of more ranks;" in str(not_enough_memory(alone, MemoryError())), "what the layout forbids"


def test_gpus_try_it_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    from nld_train.train.callbacks.memory_trial import has_memory_trial

    run = run_with()
    asked = [replace(run, train=replace(run.train, memory_trial=word)) for word in ("auto", "always", "never")]
    assert [has_memory_trial(one) for one in asked] == [False, True, False]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [has_memory_trial(one) for one in asked] == [True, True, False]
