"""Which objective a run has, and that asking for it costs no torch."""

import subprocess
import sys
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest

from nld_train.config import DrafterConfig, ObjectiveSection, RunConfig
from nld_train.objectives.choose import SECTION_OBJECTIVES, objective_of
from nld_train.objectives.drafter import DrafterObjective
from nld_train.objectives.joint import JointObjective
from nld_train.objectives.sampler import SamplerObjective
from nld_train.recipe import load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_has_the_objective_of_its_sections(name: str) -> None:
    run = load_recipe(name)
    wanted = DrafterObjective if run.drafter else SamplerObjective if run.sampler else JointObjective
    assert type(objective_of(run)) is wanted


def test_every_optional_section_has_an_objective_of_its_own() -> None:
    """Else a run with such a section would train the joint objective in silence."""
    hints = get_type_hints(RunConfig)
    sections = {
        entry.name
        for entry in fields(RunConfig)
        if any(isinstance(kind, type) and issubclass(kind, ObjectiveSection) for kind in get_args(hints[entry.name]))
    }
    assert sections == set(SECTION_OBJECTIVES) and "drafter" in sections


def test_the_weights_to_start_from_are_read_by_every_start_of_an_adapter() -> None:
    joint, drafter = (objective_of(load_recipe(name)) for name in ("nld_8b_sft", "nld_8b_drafter"))
    assert joint.init_to_read(resumes=False) and joint.init_to_read(resumes=True) is None
    assert drafter.init_to_read(resumes=False) == drafter.init_to_read(resumes=True) == drafter.run.init
    random = objective_of(load_recipe("tiny_stage1_ar"))
    assert random.init_to_read(resumes=False) is None
    assert joint.overlaps_communication and not drafter.overlaps_communication


def test_a_section_refuses_the_run_it_cannot_train() -> None:
    run = load_recipe("tiny_stage1_ar")
    with pytest.raises(Exception, match="without init"):
        replace(run, drafter=DrafterConfig())


def test_choosing_an_objective_imports_no_torch() -> None:
    program = (
        "import sys; from nld_train.objectives.choose import objective_of; from nld_train.recipe import load_recipe\n"
        "made = [objective_of(load_recipe(name)) for name in ('tiny_stage2_joint', 'tiny_drafter', 'tiny_sampler')]\n"
        "print([each.expected_head_rows() + each.most_head_rows() + each.whole_logits for each in made])\n"
        "assert not {'torch', 'numpy', 'megatron'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
