"""The attention kernels of an H100, compiled on whatever machine this is."""

import pytest

from nld_train.recipe import load_recipe
from nld_train.rehearsal.attention_kernels import (
    MOST_REGISTERS,
    MOST_SHARED,
    AttentionCase,
    CompiledKernel,
    case_of_run,
    compile_kernels,
)

CASES = [AttentionCase(length, packed) for length in (4096, 16_384) for packed in (False, True)]


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward_compile_for_sm_90_within_its_limits(case: AttentionCase) -> None:
    kernels = compile_kernels(case)
    templates = [each for each in kernels if "_tem_" in each.name]
    assert [each.backward for each in templates] == [False, True]
    for each in kernels:
        assert 0 < each.registers <= MOST_REGISTERS and each.shared <= MOST_SHARED, each
        assert each.fits
    assert templates[0].spilled == 0, "the forward spilled nothing when it was first compiled"


def test_a_kernel_that_no_chip_can_start_is_seen() -> None:
    assert CompiledKernel("a", False, registers=255, spilled=0, shared=232_448).fits
    assert not CompiledKernel("a", False, registers=255, spilled=0, shared=232_449).fits


def test_the_case_of_a_recipe_is_what_one_rank_attends_to() -> None:
    case = case_of_run(load_recipe("nld_8b_sft"))  # tensor 4
    assert case == AttentionCase(16_384, packed=True, heads=8, kv_heads=2)
    assert not case_of_run(load_recipe("nld_8b_stage1_ar")).dual
